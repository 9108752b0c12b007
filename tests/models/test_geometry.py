"""Networks whose attention reads where tokens are: rotary positions and relative biases, and patches that are left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import crossed
from tests.models.helpers import apply, images, init
from vit_jax.layers.rope import Axial, Mixed
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

X = images(4, 8, 12, 3)
GRID = (2, 3)
FIELDS = {
    "axial": {"rope": Axial(), "posemb": "none"},
    "by index": {"rope": Axial(coordinates="index", reference=4, pairs="neighbours")},
    "mixed": {"rope": Mixed(), "posemb": "none"},
    "biases": {"relative_bias": "blocks", "posemb": "none", "qkv_bias": "qv"},
    "shared biases": {"relative_bias": "shared", "posemb": "none"},
}


def vit(**fields):
    return ViT(3, 16, 2, 16, 2, patch_size=4, **{"registers": 1} | fields)


def value_and_gradients(model, params):
    def loss(params):
        return jnp.square(model.apply({"params": params}, X)).sum()

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize(
    ("kind", "way"),
    crossed([*FIELDS], [{"scan": True}, {"remat": "full"}, {"scan": True, "remat": "dots"}]),
    ids=str,
)
def test_loops_and_recomputation_give_the_same_gradients(kind, way):
    models = [vit(**FIELDS[kind], **fields) for fields in ({}, way)]
    params = init(models[0], X)
    expected, found = (jax.jit(value_and_gradients, static_argnums=0)(model, params) for model in models)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_a_subset_of_the_tokens_is_where_it_was(fields):
    """Tokens that are left out are like tokens that nothing attends to."""
    model = vit(**fields)
    params = init(model, X)
    tokens = apply(model, params, X, method="embed")
    kept = np.asarray([[0, 2, 5], [1, 3, 4], [0, 1, 2], [5, 4, 0]])
    mask = jnp.pad(jax.nn.one_hot(kept, 6).sum(axis=1) > 0, ((0, 0), (2, 0)), constant_values=True)
    masked = apply(model, params, tokens, mask=mask, grid=GRID, method="encode")
    index = np.concatenate([np.zeros((4, 2), int) + np.arange(2), kept + 2], axis=1)[:, :, None]
    left = jnp.take_along_axis(tokens, index, 1)
    found = apply(model, params, left, grid=GRID, kept=jnp.asarray(kept), method="encode")
    np.testing.assert_allclose(found, jnp.take_along_axis(masked, index, 1), rtol=0, atol=1e-5)


def test_the_tokens_before_the_patches_stay_unrotated():
    model = vit(rope=Axial(), posemb="none").clone(depth=1)
    params = init(model, X)
    tokens = apply(model, params, X, method="embed")
    mask = jnp.tile(jnp.arange(8) < 2, (4, 1))  # nothing attends to patches
    found, without = (
        apply(m, params, tokens, mask=mask, grid=GRID, method="encode")[:, :2] for m in (model, model.clone(rope=None))
    )
    np.testing.assert_array_equal(found, without)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_positions_tell_permuted_patches_apart(fields):
    """Without them the class token of a ViT does not."""
    model = vit(**fields)
    params = init(model, X)
    tokens = apply(model, params, X, method="embed")
    shuffled = jnp.concatenate([tokens[:, :2], tokens[:, 2:][:, ::-1]], axis=1)
    a, b = (apply(model, params, t, grid=GRID, method="encode")[:, 0] for t in (tokens, shuffled))
    assert np.abs(a - b).max() > 2e-5


@pytest.mark.parametrize("fields", [FIELDS["axial"], FIELDS["biases"]], ids=["axial", "biases"])
def test_tokens_whose_place_is_unknown_are_refused(fields):
    model = vit(**fields)
    params = {"params": init(model, X)}
    tokens = model.apply(params, X, method="embed")
    with pytest.raises(UserError, match=r"grid=model\.grid"):
        model.apply(params, tokens, method="encode")
    with pytest.raises(UserError, match="kept=indices"):
        model.apply(params, tokens[:, :5], grid=GRID, method="encode")


def test_fused_attention_without_biases_is_refused():
    model = vit(relative_bias="blocks", attention="cudnn")
    with pytest.raises(UserError, match="relative biases"):
        jax.eval_shape(model.init, jax.random.key(0), X)


def test_the_kernel_adds_the_relative_biases():
    plain, fused = (vit(relative_bias="shared", attention=form) for form in ("plain", "pallas"))
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape) / leaf.size, init(plain, X)
    )
    np.testing.assert_allclose(apply(fused, params, X), apply(plain, params, X), rtol=1e-5, atol=1e-5)


def test_augmented_coordinates_are_drawn_in_training_alone():
    model = vit(rope=Axial(rescale=2.0), posemb="none")
    params = init(model, X)
    plain = apply(model.clone(rope=Axial()), params, X)
    np.testing.assert_array_equal(apply(model, params, X), plain)
    a, b = (apply(model, params, X, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert np.abs(a - plain).max() > 1e-4 < np.abs(a - b).max()


def test_patch_drop_keeps_a_share_of_the_patches_in_training_alone():
    model = vit(patch_drop=0.5, registers=2)
    params = init(model, X)
    np.testing.assert_array_equal(apply(model, params, X), apply(model.clone(patch_drop=0.0), params, X))
    rngs = {"dropout": jax.random.key(0)}
    _, sown = apply(model, params, X, train=True, rngs=rngs, mutable=["intermediates"])
    assert sown["intermediates"]["encoded"].shape == (4, 3 + 3, 16)


def test_dropped_patches_keep_the_positions_of_the_others():
    """With relative biases alone, a model without positions in its tokens must be told which patches are left."""
    model = vit(patch_drop=0.5, **FIELDS["biases"])
    params = init(model, X)
    rngs = {"dropout": jax.random.key(0)}
    found = apply(model, params, X, train=True, rngs=rngs)

    def by_hand(model, images):
        _, kept = model._drop_patches(model.embed(images, train=True))
        masked = model.encode(
            model.embed(images),
            jnp.pad(jax.nn.one_hot(kept, 6).sum(1) > 0, ((0, 0), (2, 0)), constant_values=True),
            grid=GRID,
        )
        return model.apply_head(model.pool_tokens(masked))

    expected = apply(model, params, X, method=by_hand, rngs=rngs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
