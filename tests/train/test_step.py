import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.peers import torch
from vit_jax import trees
from vit_jax.grads.accumulate import Accumulate
from vit_jax.grads.gradient import Plain
from vit_jax.grads.sam import Sam
from vit_jax.models.vit import ViT
from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.mixing import CutMix
from vit_jax.tasks.task import Aux, normalize, stream
from vit_jax.train.state import initial_state
from vit_jax.train.step import make_step, prepared, trace_mapped
from vit_jax.types import UserError


def parts(gradient=None, ema_decay=None, rule=None, clip_norm=None, mix=None, **model):
    model = ViT(num_classes=3, width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=4, **model)
    task = Classify(model, mix=mix)
    tx, lr = make_optimizer(rule or rules.adam(), schedules.constant(10), lr=0.01, clip_norm=clip_norm)
    pure = make_step(task, tx, lr, gradient or Plain(), seed=0, peak=0.01, ema_decay=ema_decay)
    step = functools.partial(pure, {"task": task.constants, "data": {}})
    init = functools.partial(initial_state, task, tx, SPEC, seed=0, ema=ema_decay is not None)
    return jax.jit(step), jax.jit(init)()


RNG = np.random.default_rng(0)
SPEC = {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")}
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
    init = functools.partial(initial_state, task, tx, SPEC, seed=0)
    batch = {"image": jax.ShapeDtypeStruct((6, 8, 8, 3), "uint8"), "label": jax.ShapeDtypeStruct((6,), "int32")}
    prepare = functools.partial(prepared, task, None)
    # Six images make pairs; the three of a shard would not.
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        trace_mapped(make, prepare, {"task": {}, "data": {}}, jax.eval_shape(init), batch, shards=2)


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
    task = Classify(ViT(3, 8, 1, 16, 2, patch_size=4))
    weights = trees.flatten(state.evaluated(task)[""]["params"])
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


class Counting(Classify):
    """A task whose state counts steps and averages the share of black pixels."""

    def init_state(self, params):
        return {"steps": jnp.zeros((), jnp.int32), "black": jnp.zeros(())}

    def loss(self, params, state, batch, rng):
        value, (metrics, _) = super().loss(params, {}, batch, rng)
        return value + 0.0 * state["black"], Aux(metrics, {"black": (batch["image"] == 0).mean()})

    def update(self, params, state, stats, step):
        return {"steps": step + 1, "black": 0.5 * state["black"] + 0.5 * stats["black"]}

    def evaluated(self, params, state):
        return {"": {"params": params}}


@pytest.mark.parametrize("gradient", [Plain(), Accumulate(3), Sam(0.1)], ids=["plain", "accumulate", "sam"])
def test_a_tasks_state_is_updated_once_a_step_from_means(gradient):
    task = Counting(ViT(3, 8, 1, 16, 2, patch_size=4))
    tx, lr = make_optimizer(rules.adam(), schedules.constant(10), lr=0.01)
    state = initial_state(task, tx, SPEC, seed=0)
    step = jax.jit(functools.partial(make_step(task, tx, lr, gradient, seed=0), {"task": {}, "data": {}}))
    black = float((np.asarray(BATCH["image"]) == 0).mean())
    for k in range(3):
        state, _ = step(state, BATCH)
        assert int(state.state["steps"]) == k + 1
    np.testing.assert_allclose(state.state["black"], 0.875 * black, rtol=1e-5)


def test_streams_with_different_names_have_different_keys():
    keys = [jax.random.key_data(stream(jax.random.key(3), name)).tolist() for name in ("dropout", "mask", "params")]
    assert keys[0] == jax.random.key_data(jax.random.key(3)).tolist()
    assert len({tuple(key) for key in keys}) == 3
