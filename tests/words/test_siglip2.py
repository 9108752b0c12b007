"""SigLIP 2's terms at toy size: each learns, the late ones begin when they should, and masked patches alone count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.words import toy
from vit_jax.config import factory
from vit_jax.data.source import Field, Tokens
from vit_jax.types import UserError

SPEC = {
    "views": jax.ShapeDtypeStruct((1, 16, 16, 3), "uint8"),
    "crops": jax.ShapeDtypeStruct((2, 8, 8, 3), "uint8"),
    "text": jax.ShapeDtypeStruct((6,), "int32"),
}
SIZES = {
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_mlp_dim": 32,
    "decoder_heads": 2,
    "outputs": 12,
    "hidden": 16,
}


@pytest.fixture(scope="module")
def made():
    """The task, first parameters and state, and a prepared batch."""
    text = toy.TEXT_TOWER | {"vocab_size": 40, "length": 6}
    model = toy.IMAGE_TOWER | {"mask_token": True, "posemb_grid": [4, 4]}
    config = {"type": "siglip2.Siglip2", "text": text, **SIZES, "bottleneck": 8}
    fields = {"views": Field(), "crops": Field(), "text": Tokens(40)}
    task = factory.build_task(config, model, class_names=(), fields=fields, spec=SPEC, steps=10)
    params = jax.jit(lambda: task.init(jax.random.key(0), SPEC))()
    rng = np.random.default_rng(0)
    batch = {key: jnp.asarray(rng.integers(0, 40, (4, *x.shape)), x.dtype) for key, x in SPEC.items()}
    return task, params, task.init_state(params), task.prepare(batch, jax.random.key(1), {})


@pytest.fixture(scope="module")
def step(made):
    """The loss, its metrics and gradients, early and late."""
    task, params, state, batch = made
    run = jax.jit(jax.value_and_grad(lambda p, s: task.loss(p, s, batch, jax.random.key(2)), has_aux=True))
    return {name: run(params, {**state, "is_late": jnp.float32(late)}) for name, late in (("early", 0), ("late", 1))}


def test_the_loss_is_the_weighted_sum_of_its_terms(made, step):
    task = made[0]
    for value, aux in (found[0] for found in step.values()):
        m = aux.metrics
        late = task.late_weight * (task.distill_weight * m["loss_distilled"] + task.masked_weight * m["loss_masked"])
        np.testing.assert_allclose(value, m["loss_pairs"] + m["loss_captions"] + late, rtol=1e-5)


def test_the_late_terms_are_zero_before_their_time(step):
    early, late = (step[name][0][1].metrics for name in ("early", "late"))
    assert early["loss_distilled"] == early["loss_masked"] == 0
    assert late["loss_distilled"] > 0
    assert late["loss_masked"] > 0
    assert early["loss_pairs"] == late["loss_pairs"]


def test_every_term_reaches_its_own_parameters(step):
    def moved(grads, name):
        return any(np.abs(x).max() > 0 for x in jax.tree.leaves(grads[name]))

    assert [moved(step["early"][1], name) for name in ("decoder", "head", "patch_head", "text")] == [
        True,
        False,
        False,
        True,
    ]
    assert all(moved(step["late"][1], name) for name in ("backbone", "decoder", "head", "patch_head", "text"))


def test_the_teacher_is_the_student_until_the_late_steps_and_then_its_average(made):
    task, params, state, _ = made
    moved = jax.tree.map(lambda x: x + 1.0, params)
    stats = {name: jnp.zeros((1, 12)) for name in ("center", "patch_center")}
    early = task.update(moved, state, stats, jnp.int32(3))
    assert early["is_late"] == 0
    np.testing.assert_allclose(early["teacher"]["backbone"]["embed"]["bias"], moved["backbone"]["embed"]["bias"])
    assert [float(task.update(params, state, stats, jnp.int32(step))["is_late"]) for step in (6, 7, 8)] == [0, 1, 1]
    late = task.update(moved, {**state, "is_late": jnp.float32(1)}, stats, jnp.int32(8))
    np.testing.assert_allclose(
        late["teacher"]["backbone"]["embed"]["bias"], params["backbone"]["embed"]["bias"] + 0.001, atol=1e-6
    )


def test_half_of_the_patches_are_masked(made):
    masked = made[3]["masked"]
    assert masked.shape == (4, 16)
    assert (masked.sum(axis=1) == 8).all()


def test_examples_without_views_are_refused(made):
    with pytest.raises(UserError, match=r"put views\(1, 8"):
        made[0].init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((16, 16, 3), "uint8"), "text": SPEC["text"]})
