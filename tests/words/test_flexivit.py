"""One network for many patch sizes: resized as the authors do, drawn anew in each step, and learned at every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import tiny_config
from tests.models.helpers import apply
from vit_jax import inference
from vit_jax.__main__ import main as vit
from vit_jax.checkpoint.transfer.patches import resize_patch_embed
from vit_jax.models.flexivit import FlexiViT
from vit_jax.models.vit import ViT
from vit_jax.train.fit import fit
from vit_jax.types import UserError

FIELDS = {"num_classes": 3, "width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 4, "head_bias": 0.1}


def model(**fields):
    made = FlexiViT(**FIELDS, patch_sizes=(2, 4, 8), base_patch=8, posemb_grid=(4, 4), **fields)
    rng = np.random.default_rng(0)
    params = jax.jit(made.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    return made, {
        "params": jax.tree.map(
            lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape).astype(np.float32)), jax.device_get(params)
        )
    }


IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_at_each_size_it_is_a_vit_with_resized_parameters(patch, agrees):
    made, weights = model()
    kernel = resize_patch_embed(np.asarray(weights["params"]["embed"]["kernel"]), (patch, patch))
    plain = ViT(**FIELDS | {"patch_size": patch}, posemb_grid=(4, 4))
    resized = weights["params"] | {"embed": weights["params"]["embed"] | {"kernel": jnp.asarray(kernel)}}
    expected = jax.jit(plain.apply)({"params": resized}, IMAGES)
    found = jax.jit(made.clone(patch_size=patch).apply)(weights, IMAGES)
    agrees("FlexiViT", "a ViT with patches resized by big_vision's rule", found, expected, 1e-5)


def test_a_training_step_has_one_of_the_sizes_and_all_occur():
    made, weights = model()
    step = jax.jit(lambda key: made.apply(weights, IMAGES, train=True, rngs={"patch": key}))
    outputs = [np.asarray(jax.jit(made.clone(patch_size=size).apply)(weights, IMAGES)) for size in made.patch_sizes]
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

    grads = jax.jit(jax.grad(loss))(weights["params"], jax.random.key(0))
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


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    """A workdir of a FlexiViT for images of 16 px."""
    out = tmp_path_factory.mktemp("flexible") / "run"
    config = tiny_config()
    config.model = {
        "type": "flexivit.FlexiViT",
        **{k: v for k, v in FIELDS.items() if k not in ("num_classes", "head_bias")},
    }
    config.model.update({"patch_sizes": (2, 4, 8), "base_patch": 8, "posemb_grid": (4, 4)})
    config.steps, config.evals = 3, {}
    fit(config, out)
    return out


@pytest.mark.parametrize(
    ("patch", "to"), [pytest.param(2, "workdir", marks=pytest.mark.torture), (8, "workdir"), (4, "timm"), (8, "hf")]
)
def test_it_converts_to_a_vit_of_one_patch_size(flexible, patch, to, tmp_path, agrees):
    out = tmp_path / "out"
    assert vit(["convert", f"--model={flexible}", f"--out={out}", f"--to={to}", f"--patch_size={patch}"]) == 0
    plain, loaded = inference.load(out), inference.load(flexible)
    assert (plain.spec["type"], plain.model.patch_size) == ("vit.ViT", patch)
    pixels = jnp.asarray(np.random.default_rng(2).normal(size=(2, *loaded.image_shape)), jnp.float32)
    expected = apply(loaded.model.clone(patch_size=patch), loaded.params, pixels, method="features")
    found = apply(plain.model, plain.params, pixels, method="features")
    agrees("FlexiViT as a ViT", "FlexiViT at that size", found["pooled"], expected["pooled"], 1e-5)


@pytest.mark.parametrize("patch", [3, 32])
def test_patches_that_do_not_tile_the_image_are_refused(flexible, patch, tmp_path, capsys):
    assert (
        vit(["convert", f"--model={flexible}", f"--out={tmp_path / 'out'}", "--to=workdir", f"--patch_size={patch}"])
        == 2
    )
    assert f"Patches of {patch} pixels" in capsys.readouterr().err


def test_another_network_has_no_other_patch_size(tmp_path, capsys):
    assert vit(["convert", "--model=mu/16", f"--out={tmp_path / 'out'}", "--to=workdir", "--patch_size=8"]) == 2
    assert "flexivit.FlexiViT" in capsys.readouterr().err
