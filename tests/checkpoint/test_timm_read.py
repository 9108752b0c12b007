import re

import jax
import numpy as np
import pytest

from tests.peers import timm, torch
from vit_jax import trees
from vit_jax.config import factory
from vit_jax.pretrained import timm as theirs
from vit_jax.pretrained.pretrained import Preprocessing
from vit_jax.types import UserError


def unnamed(name, **arguments):
    """A timm model without memory, and its state dict as broadcast zeros."""
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    return model, {key: np.broadcast_to(np.int8(0), x.shape) for key, x in model.state_dict().items()}


OTHERS = "aimv2|beit3|radio|intern|18x2|_xp_|rpn|dlittle|_p?d?p?wee_p|mci|resnet|gmixer|gmlp|resmlp|test_vit[34]"
MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid", "mlp_mixer")
# One name of those that differ only in image size.
NAMES = {re.sub(r"_\d{3}$", "", name): name for module in MODULES for name in timm.list_models(module=module)}.values()


def test_every_architecture_is_read_as_timm_builds_it_or_refused():
    activations = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}
    for name in NAMES:
        model, arrays = unnamed(name, **({} if "mix" in name or "mlp" in name else {"depth": 1}))
        config = {"architecture": name, "pretrained_cfg": {"input_size": list(model.pretrained_cfg["input_size"])}}
        if re.search(OTHERS, name) and "vit_wee" not in name:
            with pytest.raises(UserError):
                theirs.read(arrays, config, name)
            continue
        found = theirs.read(arrays, config, name)
        size = (model.stem if "mixer" in name else model.patch_embed).img_size
        assert found.preprocessing.size == size
        if "mixer" in name:
            continue
        block = model.blocks[0]
        expected = {
            "num_heads": block.attn.num_heads,
            "mlp": activations[type(block.mlp.act).__name__],
            "norm_eps": block.norm1.eps,
            "pool": {"token": "tok", "avg": "gap", "map": "map"}[model.global_pool],
            "posemb_prefix": not model.no_embed_class or not model.num_prefix_tokens,
            "norm_after_pool": isinstance(model.fc_norm, torch.nn.LayerNorm),
        }
        assert {key: found.model[key] for key in expected} == expected, name


def test_networks_with_positions_in_the_attention_are_read_as_timm_builds_them():
    """Of every architecture of EVA-02, DINOv3 and BEiT, one block: what has no arrays follows from the name."""
    names = [n for m in ("eva", "beit") for n in timm.list_models(module=m) if re.match("eva|beit|vit_.*_dinov3", n)]
    assert len(names) > 30
    for name in names:
        model, arrays = unnamed(name, depth=1)
        found = theirs.read(arrays, {"architecture": name}, name)
        block, rope = model.blocks[0], getattr(model, "rope", None)
        expected = {
            "num_heads": block.attn.num_heads,
            "norm_eps": block.norm1.eps,
            "post_norm": type(block).__name__ == "EvaBlockPostNorm",
            "norm_after_pool": isinstance(model.fc_norm, torch.nn.LayerNorm),
            "mlp": "gelu" if isinstance(getattr(block.mlp, "act", None), torch.nn.GELU) else "swiglu",
        }
        assert {key: found.model[key] for key in expected} == expected, name
        turned = {"RotaryEmbeddingCat": "index", "RotaryEmbeddingDinoV3": "centred"}.get(type(rope).__name__)
        assert (found.model["rope"] or {"coordinates": None}).get("coordinates", "centred") == turned, name
        built = factory.build(found.model, "model")
        height, width = model.patch_embed.img_size
        shapes = jax.eval_shape(built.init, jax.random.key(0), jax.ShapeDtypeStruct((1, height, width, 3), "float32"))
        assert {key: leaf.shape for key, leaf in trees.flatten(shapes["params"]).items()} == {
            key: leaf.shape for key, leaf in found.params.items()
        }, name


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("resnet18", "a ResNet"),
        ("swin_tiny_patch4_window7_224", "a Swin"),
        ("convnext_atto", "a ConvNeXt"),
        ("mobilenetv3_small_050", "MobileNet"),
        ("vit_base_patch16_rope_224", "rotary"),
    ],
)
def test_other_networks_are_refused_by_their_kind(name, looks):
    arrays = unnamed(name)[1]
    for config in ({"architecture": name}, {}):
        assert theirs.matches(arrays, config)
        with pytest.raises(UserError, match=looks if config or looks != "rotary" else "rotary"):
            theirs.read(arrays, config, "it")


def test_assumptions_without_a_config_are_noted():
    arrays = unnamed("vit_tiny_patch16_224", depth=1)[1]
    found = theirs.read(arrays, {}, "it")
    assert "num_heads=3, mlp='gelu', norm_eps=1e-06, pool='tok'" in found.notes[0]
    assert "crop_pct=0.875" in found.notes[1]
    images = Preprocessing(
        (224, 224), 256, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), keep_ratio=True, rule="torchvision"
    )
    assert found.preprocessing == images


@pytest.mark.parametrize(
    ("stated", "prepared"),
    [
        ({"crop_pct": 0.9}, (248, "bicubic")),
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, (224, "bilinear")),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, ((224, 224), "bicubic")),
    ],
)
def test_preprocessing_follows_the_config(stated, prepared):
    arrays = unnamed("vit_tiny_patch16_224", depth=1)[1]
    colours = {"mean": [0.5] * 3, "std": [0.25] * 3}
    names = [f"class {i}" for i in range(1000)]
    config = {"architecture": "vit_tiny_patch16_224", "label_names": names, "pretrained_cfg": stated | colours}
    found = theirs.read(arrays, config, "it")
    assert (found.preprocessing.resized, found.preprocessing.method) == prepared
    assert found.preprocessing.std == (0.25, 0.25, 0.25)
    assert found.class_names == tuple(names)
    assert not found.notes


def test_the_license_of_weights_is_stated():
    arrays = unnamed("vit_tiny_patch16_224", depth=1)[1]
    for config in ({"license": "mit"}, {"pretrained_cfg": {"license": "mit"}}):
        (note,) = [
            n for n in theirs.read(arrays, {"architecture": "vit_tiny_patch16_224"} | config, "it").notes if "mit" in n
        ]
        assert "license" in note


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"model_args": "none"}, "model_args='none'"),
        ({"model_args": {"num_heads": 5}}, "192, which is not divisible by 5 heads"),
        ({"model_args": {"act_layer": "relu"}}, "act_layer='relu'"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer='rmsnorm'"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"pretrained_cfg": {"crop_pct": -1}}, "crop_pct=-1"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode='border'"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation='random'"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, "3 channels"),
    ],
)
def test_an_invalid_config_is_reported(part, message):
    arrays = unnamed("vit_tiny_patch16_224", depth=1)[1]
    with pytest.raises(UserError, match=message):
        theirs.read(arrays, {"architecture": "vit_tiny_patch16_224"} | part, "it")


def test_model_args_take_precedence_over_the_name():
    arrays = unnamed("vit_base_patch16_clip_quickgelu_224", depth=1)[1]
    args = {"num_heads": 6, "act_layer": "gelu_tanh", "norm_layer": "layernorm", "init_values": 0.1}
    model = theirs.read(arrays, {"architecture": "vit_base_patch16_clip_quickgelu_224", "model_args": args}, "it").model
    assert (model["num_heads"], model["mlp"], model["norm_eps"]) == (6, "gelu_tanh", 1e-6)


def test_the_original_deit_iii_is_read():
    arrays = unnamed("deit3_small_patch16_224", depth=1)[1]
    original = {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): x for name, x in arrays.items()}
    assert original.keys() != arrays.keys()
    assert theirs.read(original, {}, "it").params.keys() == theirs.read(arrays, {}, "it").params.keys()
    assert not theirs.read(original, {}, "it").model["posemb_prefix"]


@pytest.mark.parametrize(
    ("config", "posemb"), [({"architecture": "deit3_small_patch16_224"}, "bicubic"), ({}, "bicubic_no_antialias")]
)
def test_positions_are_resized_as_timm_does_or_for_weights_alone_as_deit_does(config, posemb):
    _, arrays = unnamed("deit3_small_patch16_224", depth=1)
    found = theirs.read(arrays, config, "weights")
    assert (found.posemb, found.patches) == (posemb, "bicubic")
