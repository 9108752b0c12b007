import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.types import UserError

PARAMS = {
    "dense": {"kernel": jax.random.normal(jax.random.key(0), (3, 4)), "bias": jnp.ones(4)},
    "norm": {"scale": jnp.full(3, 2.0, jnp.float32)},
}


def updates_of(tx, steps=20):
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for i in range(steps):
        keys = iter(jax.random.split(jax.random.key(i), 3))
        grads = jax.tree.map(lambda p: 3 * jax.random.normal(next(keys), p.shape), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def assert_same(a, b, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b)


def test_adam_with_decay_is_optax_adamw():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20)
    mask = {"dense": {"kernel": True, "bias": False}, "norm": {"scale": False}}
    expected = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b1=0.8, b2=0.95, weight_decay=0.2, mask=mask)
    )
    ours, _ = make_optimizer(
        rules.adam(b1=0.8, b2=0.95), schedules.cosine(20, warmup_steps=5), lr=0.1, weight_decay=0.2, clip_norm=1.0
    )
    assert_same(updates_of(ours), updates_of(expected))


def test_sgd_is_optax_sgd_with_bfloat16_momentum():
    expected = optax.sgd(0.01, momentum=0.9, accumulator_dtype=jnp.bfloat16)
    ours, _ = make_optimizer(rules.sgd(momentum=0.9), schedules.constant(20), lr=0.01)
    assert_same(updates_of(ours), updates_of(expected))
    assert {x.dtype for x in jax.tree.leaves(rules.sgd().init(PARAMS))} == {jnp.dtype("bfloat16")}


def test_decay_pulls_matching_parameters_alone():
    ours, _ = make_optimizer(rules.sgd(momentum=0.0), schedules.constant(1), lr=0.5, weight_decay=0.1, decay="scale$")
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = ours.update(zeros, ours.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    assert not updates["dense"]["kernel"].any()


def test_decay_that_matches_nothing_is_refused():
    ours, _ = make_optimizer(rules.adam(), schedules.constant(1), lr=0.5, weight_decay=0.1, decay="kernels")
    with pytest.raises(UserError, match="matches no parameter"):
        ours.init(PARAMS)


@pytest.mark.parametrize("step", [0, 1, 5, 9, 10, 11, 37, 55, 99, 100])
def test_schedules_by_hand(step):
    warm = min(1, step / 10)
    t = max(0, step - 10) / 90
    expected = {
        schedules.cosine: warm * (0.1 + 0.9 * (1 + np.cos(np.pi * t)) / 2),
        schedules.linear: warm * (1 - 0.9 * t),
        schedules.constant: warm,
        schedules.rsqrt: warm * (50 / (50 + max(0, step - 10))) ** 0.5 * min(1, (100 - step) / 20),
    }
    extra = {
        schedules.cosine: {"end": 0.1},
        schedules.linear: {"end": 0.1},
        schedules.constant: {},
        schedules.rsqrt: {"timescale": 50, "cooldown_steps": 20},
    }
    for make, value in expected.items():
        share = make(100, warmup_steps=10, **extra[make])(jnp.int32(step))
        np.testing.assert_allclose(share, value, rtol=1e-5, atol=1e-7, err_msg=make.__name__)


def test_cosine_is_optax_warmup_cosine():
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.3, 7, 50)
    ours = schedules.cosine(50, warmup_steps=7)
    for step in range(51):
        np.testing.assert_allclose(0.3 * ours(jnp.int32(step)), expected(step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: schedules.cosine(20, warmup_steps=30), "warmup_steps=30 does not fit into a run of 20 steps"),
        (
            lambda: schedules.wsd(20, 5, decay_steps=16),
            "decay_steps=16 does not fit into a run of 20 steps after a warm-up of 5",
        ),
        (lambda: schedules.wsd(20, 0.5, decay_steps=0.6), "decay_steps=0.6 does not fit"),
        (lambda: schedules.rsqrt(20, cooldown_steps=2.5), "cooldown_steps=2.5; expected a whole number"),
        (lambda: schedules.cosine(20, start=1.5), "start=1.5; expected a share of the peak"),
    ],
)
def test_a_length_or_share_that_does_not_fit_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_the_weight_decay_goes_from_its_beginning_to_its_end_by_a_half_cosine():
    tx, _ = make_optimizer(optax.identity(), schedules.constant(10), 1.0, 0.04, weight_decay_end=0.4, steps=10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = tx.init(params)
    for step in range(12):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * min(step, 10) / 10)) / 2
        np.testing.assert_allclose(updates["kernel"], -expected, rtol=1e-5)
        np.testing.assert_array_equal(updates["bias"], 0.0)


@pytest.mark.parametrize(("decay", "end"), [(0.0, 0.4), (0.04, -1.0)])
def test_a_weight_decay_that_cannot_end_there_is_refused(decay, end):
    with pytest.raises(UserError, match=r"optim\.weight_decay_end"):
        make_optimizer(optax.identity(), schedules.constant(10), 1.0, decay, weight_decay_end=end, steps=10)
