"""Compare with timm's reader of Google's files."""

import functools

import numpy as np
import pytest

from tests.checkpoint.test_google import GAP, MAP, MIXER, STEM, VIT, logits, random_images, random_params, written
from tests.peers import timm, torch
from vit_jax.pretrained import google

TIMM = {
    "img_size": 32,
    "num_classes": 7,
    "act_layer": "gelu_tanh",
    "norm_layer": functools.partial(torch.nn.LayerNorm, eps=1e-6),
}
TIMM_VIT = TIMM | {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}


def timm_logits(model, path, images: np.ndarray) -> np.ndarray:
    model.load_pretrained(str(path))
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize(
    ("spec", "args"),
    [
        (VIT, {}),
        (GAP, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
        (MAP, {"global_pool": "map", "class_token": False}),
        (VIT | {"posemb_prefix": False}, {}),
        (VIT | {"posemb": "sincos2d"}, {}),
        (VIT | {"posemb": "none"}, {}),
        (VIT | {"norm_eps": 1e-3}, {"norm_layer": functools.partial(torch.nn.LayerNorm, eps=1e-3)}),
    ],
    ids=["tok", "gap", "map", "no slot", "sincos2d", "none", "given eps"],
)
def test_timm_reads_a_vit_with_the_same_logits(spec, args, tmp_path):
    params, images = random_params(spec), random_images()
    written(tmp_path / "a.npz", spec, params)
    found = timm_logits(timm.models.VisionTransformer(**TIMM_VIT | args), tmp_path / "a.npz", images)
    np.testing.assert_allclose(found, logits(spec, params, images), atol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "stages"])
def test_timm_reads_a_hybrid_with_the_same_logits(name, tmp_path):
    from timm.models.vision_transformer_hybrid import HybridEmbed, _resnetv2

    # timm standardizes by the variance, with other epsilons
    stem = STEM | {"width": 64, "norm_eps": 1e-5, "weight_norm": "var", "weight_eps": 1e-8}
    stages, patch, size = ([2, 1], 1, 32) if name == "stages" else ([], 8, 64)
    spec = VIT | {"patch_size": patch, "stem": stem | {"stages": stages}}
    params, images = random_params(spec, size), random_images(size)
    notes = google.write(tmp_path / "a.npz", spec, params, None, None)
    assert sum("in the ResNet" in note for note in notes) == 3
    args = TIMM_VIT | {"img_size": size, "patch_size": patch}
    if name == "stages":
        embed = functools.partial(HybridEmbed, backbone=_resnetv2((2, 1)))
        model = timm.models.VisionTransformer(**args, embed_layer=embed)
    else:
        model = timm.create_model(name, **args)
    found = timm_logits(model, tmp_path / "a.npz", images)
    np.testing.assert_allclose(found, logits(spec, params, images), atol=1e-4)


def test_a_mixer_with_the_originals_names_gives_the_same_logits_in_timm(tmp_path):
    params, images = random_params(MIXER), random_images()
    arrays = written(tmp_path / "a.npz", MIXER, params)
    args = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "num_blocks": 2,
        "mlp_ratio": (0.75, 1.5),
        "num_classes": 7,
    }
    model = timm.models.MlpMixer(**args, act_layer=functools.partial(torch.nn.GELU, approximate="tanh")).eval()
    parts = {"stem.proj": "stem", "norm": "pre_head_layer_norm", "head": "head"}
    for i in range(2):
        parts |= {f"blocks.{i}.norm{j + 1}": f"MixerBlock_{i}/LayerNorm_{j}" for j in (0, 1)}
        for theirs, named in (("tokens", "token_mixing"), ("channels", "channel_mixing")):
            parts |= {f"blocks.{i}.mlp_{theirs}.fc{j + 1}": f"MixerBlock_{i}/{named}/Dense_{j}" for j in (0, 1)}
    state = {}
    for theirs, named in parts.items():
        weight = arrays.pop(f"{named}/kernel" if f"{named}/kernel" in arrays else f"{named}/scale")
        state[f"{theirs}.weight"] = torch.from_numpy(
            weight.transpose([3, 2, 0, 1] if weight.ndim == 4 else None).copy()
        )
        state[f"{theirs}.bias"] = torch.from_numpy(arrays.pop(f"{named}/bias"))
    assert not arrays
    model.load_state_dict(state)
    with torch.no_grad():
        found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found, logits(MIXER, params, images), atol=1e-4)
