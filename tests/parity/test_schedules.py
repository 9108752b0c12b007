"""Schedules at fifty steps of a run next to those of other codes, as shares of the peak."""

import importlib

import jax
import numpy as np
import optax
import pytest

from tests.peers import timm, torch
from vit_jax.optim import schedules
from vit_jax.types import UserError

STEPS, WARMUP, PEAK = 1000, 100, 3e-3
AT = np.linspace(0, STEPS, 50).round().astype(np.int32)
AFTER = np.clip((AT - WARMUP) / (STEPS - WARMUP), 0, 1)  # the progress since the warm-up
WARM = np.minimum(1, AT / WARMUP)
SINCE = np.maximum(0, AT - WARMUP)
LAST = np.clip((AT - 800) / 200, 0, 1)  # the progress in the last fifth
BIG_VISION, ORIGINAL = "big_vision's formula in float64", "the original ViT's formula in float64"

CASES = {
    "cosine": (schedules.cosine, {}, BIG_VISION, WARM * 0.5 * (1 + np.cos(np.pi * AFTER))),
    "linear to 1e-5": (
        schedules.linear,
        {"end": 1e-5 / PEAK},
        ORIGINAL,
        WARM * (1e-5 + (PEAK - 1e-5) * (1 - AFTER)) / PEAK,
    ),
    "constant": (schedules.constant, {}, BIG_VISION, WARM),
    "rsqrt": (schedules.rsqrt, {"timescale": 200}, BIG_VISION, WARM / np.sqrt(1 + SINCE / 200)),
    "rsqrt with cool-down": (
        schedules.rsqrt,
        {"timescale": 200, "cooldown_steps": 150},
        BIG_VISION,
        WARM / np.sqrt(1 + SINCE / 200) * np.minimum(1, (STEPS - AT) / 150),
    ),
    "cosine to a floor": (
        schedules.cosine,
        {"end": 1e-6 / PEAK},
        "MAE's formula in float64",
        np.where(AT < WARMUP, WARM, (1e-6 + (PEAK - 1e-6) * 0.5 * (1 + np.cos(np.pi * AFTER))) / PEAK),
    ),
    "wsd, linear": (schedules.wsd, {"shape": "linear"}, "arXiv:2405.18392 in float64", WARM * (1 - LAST)),
    "wsd, sqrt": (schedules.wsd, {}, "arXiv:2405.18392 in float64", WARM * (1 - np.sqrt(LAST))),
    "wsd, cosine to 0.1": (
        schedules.wsd,
        {"shape": "cosine", "decay_steps": 200, "end": 0.1},
        f"optax {optax.__version__}",
        np.where(AT < 800, WARM, [optax.cosine_decay_schedule(1.0, 200, 0.1)(max(0, step - 800)) for step in AT]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_equal_the_formula(name, agrees):
    make, arguments, reference, theirs = CASES[name]
    agrees(f"schedule: {name}", reference, make(STEPS, WARMUP, **arguments)(AT), theirs, 1e-6)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_cosine_equals_timms(warmup, prefix, agrees):
    """DeiT's warm-up is not a prefix; as a prefix it precedes the t_initial steps of the cosine."""
    param = torch.nn.Parameter(torch.zeros(1))
    scheduler = importlib.import_module("timm.scheduler").CosineLRScheduler(
        torch.optim.SGD([param], PEAK),
        t_initial=STEPS - warmup if prefix else STEPS,
        lr_min=1e-5,
        warmup_t=warmup,
        warmup_lr_init=1e-6,
        warmup_prefix=prefix,
    )
    theirs = [scheduler._get_lr(int(step))[0] / PEAK for step in AT]
    share = schedules.cosine(STEPS, warmup, end=1e-5 / PEAK, start=1e-6 / PEAK, count_warmup=not prefix)
    agrees("schedule: cosine of DeiT", f"timm {timm.__version__}", jax.jit(share)(AT), theirs, 1e-6)


def test_multistep_is_that_of_simmim():
    """The rule of microsoft/SimMIM, lr_scheduler.py: linear from a start, then a power of the factor."""
    schedule = schedules.multistep(800, 10 / 800, (700 / 800,), 0.1, start=5e-3)
    found = [float(schedule(step)) for step in (0, 5, 10, 699, 700, 799)]
    np.testing.assert_allclose(found, [5e-3, 0.5 * (5e-3 + 1), 1, 1, 0.1, 0.1], rtol=1e-6)
    with pytest.raises(UserError, match="rising order"):
        schedules.multistep(100, 0, (0.8, 0.5))
