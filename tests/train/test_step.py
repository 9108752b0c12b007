import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.peers import torch
from vit_jax import trees
from vit_jax.data.pipeline import Spec
from vit_jax.grads.accumulate import Accumulate
from vit_jax.grads.gradient import Plain
from vit_jax.models.vit import ViT
from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.mixing import CutMix
from vit_jax.tasks.task import normalize
from vit_jax.train.run import batch_shapes
from vit_jax.train.state import initial_state
from vit_jax.train.step import make_step, trace_mapped
from vit_jax.types import UserError


def parts(gradient=None, ema_decay=None, rule=None, clip_norm=None, mix=None, **model):
    model = ViT(num_classes=3, width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=4, **model)
    task = Classify(model, mix=mix)
    tx, lr = make_optimizer(rule or rules.adam(), schedules.constant(10), lr=0.01, clip_norm=clip_norm)
    step = functools.partial(
        make_step(task, tx, lr, gradient or Plain(), seed=0, peak=0.01, ema_decay=ema_decay), task.constants
    )
    init = functools.partial(initial_state, task, tx, (8, 8, 3), seed=0, ema=ema_decay is not None)
    return jax.jit(step), jax.jit(init)()


RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)),
    "label": jnp.asarray(RNG.integers(0, 3, 12), jnp.int32),
}


@pytest.mark.parametrize("microbatches", [1, 3, 12])
def test_accumulation_equals_the_big_batch(microbatches):
    results = []
    for gradient in (Plain(), Accumulate(microbatches)):
        step, state = parts(gradient, rule=rules.sgd(momentum_dtype="float32"))
        for _ in range(3):
            state, metrics = step(state, BATCH)
        results.append((state.params, metrics))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *results)


def test_microbatches_must_divide_the_batch():
    with pytest.raises(UserError, match="does not divide the batch of 12"):
        step, state = parts(Accumulate(5))
        step(state, BATCH)


def test_dropout_is_a_function_of_seed_and_step():
    step, state = parts(dropout=0.5)
    again, other = step(state, BATCH)[1]["loss"], step(state.replace(step=jnp.int32(1)), BATCH)[1]["loss"]
    # The head is zero at first, so that the first losses are all ln 3; the gradient's norm differs.
    norms = [step(state.replace(step=jnp.int32(k)), BATCH)[1]["grad_norm"] for k in (0, 0, 1)]
    np.testing.assert_allclose([again, other], np.log(3), rtol=1e-5)
    assert norms[0] == norms[1] != norms[2]


@pytest.mark.parametrize(("microbatches", "says"), [(3, None), (2, "does not divide the batch of 3")])
def test_pmap_prepares_the_batch_whole_and_takes_the_loss_of_a_shard(microbatches, says):
    task = Classify(ViT(3, 8, 1, 16, 2, patch_size=4), mix=CutMix(mode="pair"))
    tx, lr = make_optimizer(rules.adam(), schedules.constant(10), lr=0.01)
    make = functools.partial(make_step, task, tx, lr, Accumulate(microbatches), seed=0)
    init = functools.partial(initial_state, task, tx, (8, 8, 3), seed=0)
    spec = Spec((8, 8, 3), 12, tuple("abc"))
    # Six images make pairs; the three of a shard would not.
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        trace_mapped(make, task, jax.eval_shape(init), batch_shapes(spec, 6), shards=2)


def test_metrics_are_what_they_say():
    step, state = parts(clip_norm=1e-3)
    after, metrics = step(state, BATCH)
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(after.params), rtol=1e-5)
    change = jax.tree.map(jnp.subtract, after.params, state.params)
    np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(change), rtol=1e-3)
    assert metrics["grad_norm"] > 1e-3  # before clipping
    np.testing.assert_allclose(metrics["lr"], 0.01, rtol=1e-6)
    assert int(after.step) == 1


def test_ema_follows_the_parameters_and_is_what_is_evaluated(agrees):
    from torch.optim.swa_utils import get_ema_avg_fn

    step, state = parts(ema_decay=0.9)
    average = {name: torch.tensor(np.array(leaf, np.float64)) for name, leaf in trees.flatten(state.params).items()}
    for k in range(20):
        state, _ = step(state, BATCH)
        lerp = get_ema_avg_fn(min(0.9, (1 + k) / (10 + k)))
        new = {name: torch.tensor(np.array(leaf, np.float64)) for name, leaf in trees.flatten(state.params).items()}
        average = {name: lerp(average[name], new[name], None) for name in average}
    weights = trees.flatten(state.weights)
    for name, expected in average.items():
        agrees(
            "EMA with warm-up, 20 steps",
            f"torch {torch.__version__.partition('+')[0]} float64",
            weights[name],
            expected,
            1e-6,
        )


def test_images_are_normalised_by_channel():
    expected = (np.asarray(BATCH["image"]) / 255 - np.array([0.1, 0.2, 0.3])) / 0.5
    np.testing.assert_allclose(normalize(BATCH["image"], (0.1, 0.2, 0.3), 0.5), expected, rtol=1e-5, atol=1e-6)


def test_training_learns_a_batch_by_heart():
    step, state = parts()
    for _ in range(60):
        state, metrics = step(state, BATCH)
    assert metrics["loss"] < 0.3
    assert metrics["accuracy"] == 1.0
