import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from flax.traverse_util import unflatten_dict

from tests.peers import timm, torch
from vit_jax import trees
from vit_jax.config import factory as configs
from vit_jax.pretrained import timm as theirs
from vit_jax.pretrained.pretrained import Preprocessing
from vit_jax.types import UserError

TINY = {"embed_dim": 96, "depth": 1, "num_heads": 3, "img_size": (64, 96), "num_classes": 10}
TINY["pretrained_cfg_overlay"] = {"crop_mode": "squash", "crop_pct": 1.0}
CASES = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch32_384": {"depth": 2},
    "vit_base_patch16_siglip_224": {"depth": 2, "num_classes": 10},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "deit3_small_patch16_224": {"depth": 2},
    "vit_tiny_r_s16_p8_224": {"depth": 2},
    "vit_small_r26_s32_224": {"depth": 2},
    "mixer_s32_224": {},
    "registers": {"name": "vit_small_patch14_reg4_dinov2", **TINY, "img_size": (42, 56)},
    "registers with slots": {"name": "vit_tiny_patch16_224", **TINY, "reg_tokens": 4},
    "qk_norm": {"name": "vit_tiny_patch16_224", **TINY, "qk_norm": True},
    "swiglu": {"name": "vit_tiny_patch16_224", **TINY, "mlp_layer": timm.layers.SwiGLU, "act_layer": "silu"},
    "swiglu packed": {"name": "vit_tiny_patch16_224", **TINY, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": "silu"},
    "quick_gelu": {"name": "vit_base_patch32_clip_quickgelu_224", **TINY, "patch_size": (16, 32)},
    "gelu_tanh": {"name": "vit_base_patch32_siglip_256", **TINY, "patch_size": 16},
    "fc_norm": {"name": "vit_tiny_patch16_224", **TINY, "global_pool": "avg", "in_chans": 1},
    "no class token": {"name": "vit_tiny_patch16_224", **TINY, "class_token": False, "global_pool": "avg", "fc_norm": False},
    "features": {"name": "vit_tiny_patch16_224", **TINY, "num_classes": 0, "qkv_bias": False},
    "DINO": {"name": "vit_small_patch8_224.dino", **TINY, "num_classes": 0},
    "MAE": {"name": "vit_base_patch16_224.mae", **TINY, "num_classes": 0},
    "I-JEPA": {"name": "vit_huge_patch14_gap_224.in1k_ijepa", **TINY, "img_size": (42, 56), "num_classes": 0},
    "DINOv2": {"name": "vit_base_patch14_dinov2", **TINY, "img_size": (42, 56), "num_classes": 0},
    "DINOv2 giant": {"name": "vit_giant_patch14_reg4_dinov2", **TINY, "img_size": (42, 56), "num_classes": 0},
    "DINOv3": {"name": "vit_small_patch16_dinov3", **TINY},
    "DINOv3 with zero biases": {"name": "vit_base_patch16_dinov3_qkvb", **TINY, "num_classes": 0, "global_pool": "token"},
    "DINOv3 plus": {"name": "vit_small_plus_patch16_dinov3", **TINY},
    "EVA-02": {"name": "eva02_small_patch14_224", **TINY, "img_size": (42, 56), "depth": 2},
    "EVA-02 large": {"name": "eva02_large_patch14_448", **TINY, "img_size": (42, 56)},
    "EVA-02 CLIP": {"name": "eva02_base_patch16_clip_224", **TINY},
    "EVA-02 enormous": {"name": "eva02_enormous_patch14_clip_224", **TINY, "img_size": (42, 56)},
    "EVA": {"name": "eva_giant_patch14_224", **TINY, "img_size": (42, 56)},
    "BEiT": {"name": "beit_base_patch16_224", **TINY, "depth": 2},
    "BEiT v2": {"name": "beitv2_large_patch16_224", **TINY, "num_classes": 0, "init_values": 0.1},
    "BEiT with shared biases": {"name": "beit_base_patch16_224", **TINY, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    "no positions": {"name": "vit_tiny_patch16_224", **TINY, "pos_embed": "none"},
}  # fmt: skip
# Published models with all their blocks, which are slow.
WHOLE = {f"{n}, whole": {"name": n} | given | {"depth": 12} for n, given in CASES.items() if given.get("depth") == 2}
WHOLE |= {f"{n}, whole": {"name": n} for n in ("vit_small_patch16_224", "vit_base_patch16_224", "vit_base_r50_s16_224")}
WHOLE["mixer_b16_224, whole"] = {"name": "mixer_b16_224"}
PARAMS = [*CASES, *(pytest.param(name, marks=pytest.mark.torture) for name in WHOLE)]


def perturbed(name, **arguments):
    """A timm model with random parameters and logits of unit scale."""
    with torch.device("meta"):  # initialization takes seconds
        model = timm.create_model(name, **arguments)
    model = model.to_empty(device="cpu").eval()
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in key and key.endswith("weight"):
                noise = 1 + 0.2 * noise
            elif parameter.ndim > 1 and key.endswith("weight"):
                noise /= parameter[0].numel() ** 0.5
            else:
                noise *= 0.5
            parameter.copy_(noise)
    return model


def logits_of(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def ours(source, images):
    """The outputs of this library's model with the weights read."""
    model = configs.build(source.model, "model")
    return np.asarray(jax.jit(model.apply)({"params": unflatten_dict(source.params, sep="/")}, images))


def save_config(model, path):
    """Write the config.json that timm publishes; Python classes are replaced by text."""
    layers = {"mlp_layer": "a class"} if "mlp_layer" in model._model_args else {}
    timm.models._hub.save_config_for_hf(model, path, model_args=layers)


def images_of(size, channels):
    return np.random.default_rng(0).standard_normal((1, *size, channels), np.float32)


@pytest.fixture(scope="module", params=PARAMS)
def case(request, tmp_path_factory):
    """A published timm model as read, images, and the outputs of timm and this library."""
    model = perturbed(**{"name": request.param} | (CASES | WHOLE)[request.param])
    path = tmp_path_factory.mktemp("timm") / "config.json"
    save_config(model, path)
    arrays = safetensors.numpy.load(safetensors.torch.save(model.state_dict()))
    config = json.loads(path.read_text())
    assert theirs.matches(arrays, config)
    source = theirs.read(arrays, config, "the model")
    assert sum(x.size for x in source.params.values()) == sum(x.size for x in arrays.values())
    images = images_of(source.preprocessing.size, len(source.preprocessing.mean))
    return source, images, logits_of(model, images), ours(source, images)


def test_logits_equal_timms(case):
    source, _, expected, found = case
    assert 0.2 < expected.std() < 5
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert not [note for note in source.notes if "license" not in note]


# The larger plain ViTs are written like the tiny one.
EXPORTED = [name for name in CASES if name != "vit_base_patch32_384"]
EXPORTED += [pytest.param(f"{n}, whole", marks=pytest.mark.torture) for n in ("vit_base_r50_s16_224", "mixer_b16_224")]


@pytest.mark.parametrize("case", EXPORTED, indirect=True)
def test_timm_builds_what_we_export(case, tmp_path):
    source, images, _, expected = case
    notes = theirs.write(tmp_path / "out", source.model, source.params, source.preprocessing, source.class_names)
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    shutil.rmtree(tmp_path / "out")
    np.testing.assert_allclose(logits_of(again, images), expected, rtol=0, atol=2e-5)
    assert not notes


SMALL = {"type": "vit.ViT", "num_classes": 5, "width": 96, "depth": 1, "mlp_dim": 77, "num_heads": 3, "patch_size": 16}
IMAGES = Preprocessing((32, 48), (32, 48), "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), rule="torchvision")


def random_params(spec, size=(32, 48)):
    model = configs.build(spec, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))["params"]
    rng = np.random.default_rng(0)
    return {
        name: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in trees.flatten(shapes).items()
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"posemb": "sincos2d", "pool": "gap", "layer_scale": 0.1},
        {"posemb": "sincos2d", "posemb_prefix": False, "registers": 2, "embed_bias": False},
        {"pre_norm": True, "embed_bias": False, "norm_eps": 1e-5, "mlp": "quick_gelu"},
        {"mlp": "swiglu", "class_token": True, "pool": "gap", "norm_after_pool": True},
        {"pool": "map", "class_token": True, "registers": 1, "norm_after_pool": True},
    ],
)
def test_models_without_a_name_in_timm_are_built_from_arguments(fields, tmp_path):
    spec = SMALL | fields
    params = random_params(spec)
    assert theirs.write(tmp_path / "out", spec, params, IMAGES, None) == []
    images = images_of((32, 48), 3)
    model = configs.build(spec, "model")
    expected = jax.jit(model.apply)({"params": unflatten_dict(params, sep="/")}, images)
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    np.testing.assert_allclose(logits_of(again, images), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("fields", [{}, {"mlp": "swiglu", "registers": 3, "qk_norm": True}, {"distilled": True}])
def test_an_exported_model_reads_back_bit_for_bit(fields, tmp_path):
    spec = SMALL | fields
    params = random_params(spec)
    theirs.write(tmp_path / "out", spec, params, IMAGES, tuple("abcde"))
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    again = theirs.read(arrays, json.loads((tmp_path / "out" / "config.json").read_text()), "the model")
    assert {key: again.model[key] for key in spec} == spec
    assert {name: x.tobytes() for name, x in again.params.items()} == {name: x.tobytes() for name, x in params.items()}
    assert (again.preprocessing, again.class_names, again.notes) == (IMAGES, tuple("abcde"), ())


@pytest.mark.parametrize(
    "fields",
    [
        {"rep_size": 8},
        {"stride": 8},
        {"padding": "same"},
        {"norm_eps": 1e-3},
        {"mlp": "swiglu", "pool": "map"},
        {"distilled": True, "posemb_prefix": False},
        {"rope": {"type": "Mixed"}},
        {"qkv_bias": True, "post_norm": True},
        {"qk_norm": True, "relative_bias": "shared", "qkv_bias": "qv", "mlp": "gelu"},
        {"distilled": True, "relative_bias": "blocks", "qkv_bias": "qv", "mlp": "gelu"},
        {"embed_bias": True, "pre_norm": True},
        {"stem": {"type": "resnet.ResNet", "stages": [1]}},
        {"type": "mixer.Mixer", "tokens_mlp_dim": 4, "channels_mlp_dim": 4},
    ],
)
def test_models_that_timm_cannot_build_are_refused_before_writing(fields, tmp_path):
    field = next(iter(fields)) if "type" not in fields else "width"
    with pytest.raises(UserError, match=rf"model\.{field}="):
        theirs.write(tmp_path / "out", SMALL | fields, {}, IMAGES, None)
    assert not list(tmp_path.iterdir())


def test_an_epsilon_that_timm_cannot_express_is_noted(tmp_path):
    spec = SMALL | {"norm_eps": 1e-12}
    (note,) = theirs.write(tmp_path / "out", spec, random_params(spec), IMAGES, None)
    assert "norm_eps=1e-06, not 1e-12" in note


def test_export_refuses_a_path_that_exists(tmp_path):
    with pytest.raises(UserError, match="already exists"):
        theirs.write(tmp_path, SMALL, {}, IMAGES, None)
