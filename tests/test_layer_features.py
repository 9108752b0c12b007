"""What is after each block, as timm's forward_intermediates gives it."""

import jax
import numpy as np
import pytest

from tests.checkpoint.test_timm import TINY, perturbed
from tests.peers import torch
from vit_jax import inference
from vit_jax.pretrained import timm as formats
from vit_jax.types import UserError

SMALL = TINY | {"depth": 3, "num_classes": 0}
CASES = {
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": (42, 56)}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "BEiT": ("beit_base_patch16_224", {}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """timm's model, and ours loaded from its export."""
    name, fields = CASES[request.param]
    model = perturbed(name, **SMALL | fields)
    arrays = {key: x.numpy() for key, x in model.state_dict().items()}
    size = {"input_size": (3, *model.patch_embed.img_size), "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    config = {
        "architecture": name,
        "global_pool": model.global_pool,
        "model_args": {"num_heads": 3},
        "pretrained_cfg": size | {"crop_mode": "squash"},
    }
    source = formats.read(arrays, config, "it")
    folder = tmp_path_factory.mktemp("features") / "model"
    formats.write(folder, source.model, source.params, source.preprocessing, None)
    return model, inference.load(folder)


@pytest.mark.parametrize("norm", [False, True])
def test_layers_equal_timms_with_and_without_the_norm(case, norm):
    model, loaded = case
    images = np.random.default_rng(0).integers(0, 256, (2, *loaded.image_shape), np.uint8)
    pixels = torch.from_numpy(((images / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = model.forward_intermediates(
            pixels, indices=[0, 2], norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
    found = loaded.features(images, layers=[0, -1], norm=norm)
    assert len(found) == 2
    # Without prefix tokens timm gives the maps alone.
    pairs = [each if isinstance(each, tuple) else (each, each[:, :0]) for each in expected]
    for ours, (patches, prefix) in zip(found, pairs, strict=True):
        np.testing.assert_allclose(ours["patches"], patches.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4)
        before = [ours["class_token"][:, None]] if "class_token" in ours else []
        before = (
            np.concatenate([*before, *([ours["registers"]] if "registers" in ours else [])], axis=1) if before else 0
        )
        np.testing.assert_allclose(before, prefix.numpy() if prefix.shape[1] else 0, rtol=0, atol=1e-4)


def test_layers_that_are_not_there_are_refused_with_their_number(case):
    _, loaded = case
    images = np.zeros((1, *loaded.image_shape), np.uint8)
    with pytest.raises(UserError, match="the network has 3"):
        loaded.features(images, layers=[3])


def test_the_default_is_the_last_layer(case):
    _, loaded = case
    images = np.zeros((1, *loaded.image_shape), np.uint8)
    (last,) = loaded.features(images)
    np.testing.assert_array_equal(last["patches"], loaded.features(images, layers=[2])[0]["patches"])
    assert jax.tree.all(jax.tree.map(lambda x: isinstance(x, np.ndarray), last))
