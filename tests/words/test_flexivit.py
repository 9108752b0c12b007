"""One network for many patch sizes: resized as the authors do, drawn anew in each step, and learned at every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.checkpoint.transfer.patches import resize_patch_embed
from vit_jax.models.flexivit import FlexiViT
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

FIELDS = {"num_classes": 3, "width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 4, "head_bias": 0.1}


def model(**fields):
    made = FlexiViT(**FIELDS, patch_sizes=(2, 4, 8), base_patch=8, posemb_grid=(4, 4), **fields)
    rng = np.random.default_rng(0)
    params = jax.jit(made.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    return made, {
        "params": jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    }


IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_at_each_size_it_is_a_vit_with_resized_parameters(patch, agrees):
    made, weights = model()
    kernel = resize_patch_embed(np.asarray(weights["params"]["embed"]["kernel"]), (patch, patch))
    plain = ViT(**FIELDS | {"patch_size": patch}, posemb_grid=(4, 4))
    resized = weights["params"] | {"embed": weights["params"]["embed"] | {"kernel": jnp.asarray(kernel)}}
    expected = plain.apply({"params": resized}, IMAGES)
    found = made.clone(patch_size=patch).apply(weights, IMAGES)
    agrees("FlexiViT", "a ViT with patches resized by big_vision's rule", found, expected, 1e-5)


def test_a_training_step_has_one_of_the_sizes_and_all_occur():
    made, weights = model()
    step = jax.jit(lambda key: made.apply(weights, IMAGES, train=True, rngs={"patch": key}))
    outputs = [np.asarray(made.clone(patch_size=size).apply(weights, IMAGES)) for size in made.patch_sizes]
    seen = set()
    for seed in range(20):
        found = np.asarray(step(jax.random.key(seed)))
        near = [i for i, out in enumerate(outputs) if np.allclose(found, out, atol=1e-5)]
        assert len(near) == 1
        seen.add(near[0])
    assert seen == {0, 1, 2}
    assert step._cache_size() == 1


def test_every_parameter_gets_the_gradient_of_the_drawn_size():
    made, weights = model()

    def loss(params, key):
        return jnp.square(made.apply({"params": params}, IMAGES, train=True, rngs={"patch": key})).sum()

    grads = jax.grad(loss)(weights["params"], jax.random.key(0))
    assert all(np.abs(x).max() > 0 for name, x in jax.tree_util.tree_leaves_with_path(grads) if "key" not in str(name))


@pytest.mark.parametrize("sizes", [(), (0, 4)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(UserError, match=r"model\.patch_sizes"):
        FlexiViT(**FIELDS, patch_sizes=sizes)


def test_images_that_a_size_does_not_tile_are_refused():
    made, weights = model()
    made = made.clone(patch_sizes=(4, 5))
    with pytest.raises(UserError, match="cannot be tiled by patches of 5"):
        made.apply(weights, IMAGES, train=True, rngs={"patch": jax.random.key(0)})
