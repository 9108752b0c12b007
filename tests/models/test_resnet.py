from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.models.helpers import apply, count, images, init
from tests.peers import timm, torch
from vit_jax import trees
from vit_jax.config import load as config_file
from vit_jax.config.factory import ConfigError, build
from vit_jax.layers.conv import StdConv, standardize
from vit_jax.models import fill
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

# Published counts at 224 px and 1000 classes.
COUNTS = {
    "R+Ti/16": 6_337_704,
    "R26+S/32": 36_431_912,
    "R26+B/32": 101_383_976,
    "R50+B/16": 98_659_112,
    "R50+L/32": 328_994_856,
}


def hybrid(**fields):
    return build({"type": "vit.ViT", "num_classes": 1000, **fields}, "model")


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_count_of_a_hybrid_is_the_published_one(variant):
    assert count(hybrid(variant=variant)) == COUNTS[variant]


@pytest.mark.parametrize("variant", COUNTS)
def test_patches_of_a_hybrid_are_those_of_its_name(variant):
    # The root of R+Ti/16 is followed by patches of 8: 32 pixels, whatever its name.
    pixels = 32 if variant == "R+Ti/16" else int(variant.partition("/")[2])
    assert hybrid(variant=variant).grid((224, 448)) == (224 // pixels, 448 // pixels)


def theirs(stages):
    """timm's network of the hybrids, at half the width."""
    conv = partial(timm.layers.StdConv2dSame, eps=1e-8)
    channels = [128 * 2**i for i in range(len(stages))]
    return timm.models.resnetv2.ResNetV2(
        layers=stages, channels=channels, num_classes=0, global_pool="", in_chans=3, preact=False, stem_type="same",
        stem_chs=32, conv_layer=conv,
    ).eval()  # fmt: skip


def renamed(name):
    """timm's name of a parameter of ours."""
    *parents, layer, leaf = name.split("/")
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    if not parents:
        return {"root": "stem.conv", "root_norm": "stem.norm"}[layer] + f".{leaf}"
    stage, unit = (part.rpartition("_")[2] for part in parents)
    layer = {"conv_proj": "downsample.conv", "norm_proj": "downsample.norm"}.get(layer, layer)
    return f"stages.{stage}.blocks.{unit}.{layer}.{leaf}"


@pytest.mark.parametrize(("stages", "size"), [([1, 2], (32, 32)), ([2, 1, 1], (37, 64))])
def test_feature_map_is_that_of_timm(stages, size):
    x = images(2, *size, 3)
    model = ResNet(stages=tuple(stages), width=32, norm_eps=1e-5, weight_norm="var", weight_eps=1e-8)
    params = init(model, x)
    peer = theirs(stages)
    state = {}
    for name, leaf in trees.flatten(params).items():
        state[renamed(name)] = torch.tensor(np.array(leaf if leaf.ndim == 1 else leaf.transpose(3, 2, 0, 1)))
    peer.load_state_dict(state)
    with torch.no_grad():
        expected = peer(torch.tensor(np.array(x.transpose(0, 3, 1, 2)))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(apply(model, params, x), expected, atol=2e-4)
    assert model.grid(size) == expected.shape[1:3]


@pytest.mark.parametrize("norm", ["std", "var"])
def test_standardisation_is_by_hand(norm):
    kernel = np.random.default_rng(0).normal(0.3, 2.0, (3, 2, 5, 7)).astype(np.float32)
    expected = np.empty((3, 2, 5, 7))
    for i in range(7):
        weights = kernel[..., i].astype(np.float64)
        spread = weights.std() + 0.1 if norm == "std" else np.sqrt(weights.var() + 0.1)
        expected[..., i] = (weights - weights.mean()) / spread
    np.testing.assert_allclose(standardize(jnp.asarray(kernel), norm, 0.1), expected, atol=1e-5)


def test_standardisation_is_in_float32():
    x = images(1, 1, 1, 64)
    model = StdConv(features=8, dtype="bfloat16")
    params = init(model, x)
    # bfloat16 cannot tell such weights from one another.
    params["kernel"] = 100.0 + 0.1 * params["kernel"]
    expected = x.reshape(1, 64) @ standardize(params["kernel"]).reshape(64, 8)
    out = apply(model, params, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.reshape(1, 8).astype(jnp.float32), expected, atol=0.3)


def test_scale_of_a_kernel_does_not_matter():
    x = images(1, 16, 16, 3)
    model = ResNet(stages=(1,), width=32)
    params = init(model, x)
    scaled = jax.tree.map(lambda leaf: 5.0 * leaf if leaf.ndim == 4 else leaf, params)
    np.testing.assert_allclose(apply(model, params, x), apply(model, scaled, x), atol=2e-3)


def test_a_new_unit_passes_its_shortcut():
    x = images(1, 16, 16, 3)
    model = ResNet(stages=(2,), width=32)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    shorter = params | {"stage_0": {"unit_0": params["stage_0"]["unit_0"]}}
    np.testing.assert_array_equal(apply(model, params, x), apply(model.clone(stages=(1,)), shorter, x))


def test_stem_takes_the_dtypes_of_the_model():
    fields = {"num_classes": 5, "width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 1}
    stem = ResNet(stages=(1,), width=32, param_dtype="float16")
    model = ViT(**fields, stem=stem, dtype="bfloat16")
    x = images(1, 16, 16, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert stem.param_dtype == "float16"


def test_stem_of_a_config_is_built_from_its_spec():
    stem = {"type": "resnet.ResNet", "stages": [1, 2], "width": 32, "weight_norm": "var"}
    model = hybrid(variant="Ti/1", stem=stem)
    assert model.stem.stages == (1, 2)
    assert model.stem.weight_norm == "var"


def test_stem_may_be_given_as_a_flag():
    stem = "{'type': 'resnet.ResNet', 'stages': [1], 'width': 32}"
    flags = [("model.patch_size", "1"), ("model.stem", stem), ("model.stem.weight_norm", "var")]
    config = config_file.load(str(ROOT / "configs" / "digits.py"), flags)
    model = build(config.model, "model", num_classes=10)
    assert (model.stem.stages, model.stem.weight_norm) == ((1,), "var")


def test_explicit_fields_win_over_those_of_a_hybrid():
    stem = {"type": "resnet.ResNet", "stages": (1,)}
    filled = fill({"type": "vit.ViT", "variant": "R50+B/16", "depth": 2, "stem": stem})
    assert (filled["depth"], filled["stem"], filled["patch_size"], filled["width"]) == (2, stem, 1, 768)


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ({"type": "resnet.Resnet", "stages": [1]}, r"model\.stem\.type.*resnet\.ResNet"),
        ({"type": "resnet.ResNet", "stages": [1], "weight_nrom": "var"}, r"model\.stem\.weight_nrom.*weight_norm"),
        ({"type": "resnet.ResNet"}, r"model\.stem lacks stages"),
        ({"stages": [1]}, r"model\.stem is .*expected dict\(type"),
    ],
)
def test_mistakes_in_a_stem_name_its_place(stem, message):
    with pytest.raises(ConfigError, match=message):
        hybrid(variant="Ti/1", stem=stem)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hybrid(variant="R50+B/32"), r"R50\+B/16"),
        (lambda: hybrid(variant="Ti/1", stem={"type": "resnet.ResNet", "variant": "R50"}), "Give its stages"),
        (lambda: ResNet(stages=(1, 0)), r"stages=\(1, 0\)"),
        (lambda: ResNet(stages=(1,), width=48), "width=48.*multiple of 32"),
        (lambda: hybrid(variant="R+Ti/16").grid((96, 100)), "stem's output width of 25 .* 24 or 32"),
    ],
)
def test_impossible_networks_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_stem_must_give_a_feature_map():
    small = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}
    model = ViT(**small, num_classes=5, stem=ViT(**small, num_classes=0))
    with pytest.raises(UserError, match="feature maps"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
