from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.conftest import crossed
from tests.models.helpers import apply, count, images, init, sown
from vit_jax import trees
from vit_jax.layers.patch_embed import convolved
from vit_jax.layers.pooling import AttentionPool
from vit_jax.models.resnet import ResNet
from vit_jax.models.sizes import SIZES, parse_variant
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

SMALL = {"num_classes": 5, "width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}


# Published counts at 224 px and 1000 classes.
COUNTS = [
    ("Ti/16", "tok", 5_717_416),
    ("S/16", "tok", 22_050_664),
    ("S/32", "tok", 22_878_952),
    ("B/16", "tok", 86_567_656),
    ("B/32", "tok", 88_224_232),
    ("B/8", "tok", 86_576_872),
    ("L/16", "tok", 304_326_632),
    ("L/32", "tok", 306_535_400),
    ("H/14", "tok", 632_045_800),
    ("S/16", "gap", 22_049_896),
    ("B/16", "gap", 86_566_120),
]


@pytest.mark.parametrize(("variant", "pool", "published"), COUNTS)
def test_parameter_count_is_the_published_one(variant, pool, published):
    assert count(ViT(num_classes=1000, pool=pool, **parse_variant(variant))) == published


@pytest.mark.parametrize(("pool", "size"), crossed(["tok", "gap", "map"], [*SIZES]))
def test_every_size_gives_logits(size, pool):
    model = ViT(num_classes=10, pool=pool, posemb="sincos2d", **parse_variant(f"{size}/14") | {"depth": 1})
    logits = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 28, 42, 3)))[0])
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_reaches_every_activation_and_param_dtype_every_parameter(dtype):
    x = images(2, 8, 12, 3)
    model = ViT(**SMALL, pool="map", rep_size=24, dtype=dtype, param_dtype="bfloat16")
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    logits, sown = apply(model, params, x, mutable=["intermediates", "attention"])
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, sown))} == {jnp.dtype(dtype)}


def test_patches_are_numbered_row_by_row():
    model = ViT(**SMALL, pool="gap", posemb="none")
    x = images(1, 8, 12, 3)
    params = init(model, x)

    def tokens(x):
        return apply(model, params, x, mutable=["intermediates"])[1]["intermediates"]["tokens"]

    changed = jnp.abs(tokens(x.at[0, 5, 9, 1].add(1.0)) - tokens(x)).max(axis=(0, 2)) > 1e-4
    assert changed.nonzero()[0].tolist() == [1 * 3 + 2]  # row 1 of 2, column 2 of 3


def test_without_positions_the_order_of_patches_does_not_matter():
    model = ViT(**SMALL, pool="gap", posemb="none")
    x = images(2, 8, 8, 3)
    swapped = jnp.concatenate([x[:, 4:], x[:, :4]], axis=1)
    params = init(model, x)
    logits = [apply(model, params, image) for image in (x, swapped)]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_with_positions_the_order_of_patches_matters():
    model = ViT(**SMALL, pool="gap", posemb="sincos2d")
    x = images(2, 8, 8, 3)
    swapped = jnp.concatenate([x[:, 4:], x[:, :4]], axis=1)
    params = init(model, x)
    logits = [apply(model, params, image) for image in (x, swapped)]
    assert jnp.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize(("size", "channels"), [((8, 12), 3), ((4, 16), 1), ((12, 4), 5)])
def test_any_grid_and_any_channels(size, channels):
    model = ViT(**SMALL)
    x = images(2, *size, channels)
    assert apply(model, init(model, x), x).shape == (2, 5)


def test_patches_may_be_oblong():
    x = images(2, 8, 12, 3)
    model = ViT(**(SMALL | {"patch_size": (2, 6)}))
    assert jax.eval_shape(model.init, jax.random.key(0), x)["params"]["posemb"]["table"].shape == (1, 1 + 4 * 2, 16)


def test_overlapping_patches_see_their_window():
    model = ViT(**SMALL, stride=2, pool="gap", posemb="none")
    x = images(1, 8, 8, 3)
    params = init(model, x)
    _, sown = apply(model, params, x, mutable=["intermediates"])
    tokens = sown["intermediates"]["tokens"]
    assert tokens.shape == (1, 3 * 3, 16)
    kernel, bias = params["embed"]["kernel"], params["embed"]["bias"]
    expected = jnp.einsum("hwc,hwcd->d", x[0, 2:6, 4:8], kernel) + bias
    np.testing.assert_allclose(tokens[0, 1 * 3 + 2], expected, atol=1e-5)


@pytest.mark.parametrize(("patch", "stride"), [((4, 4), (4, 4)), ((2, 6), (2, 6)), ((4, 4), (2, 2)), ((8, 4), (4, 2))])
def test_matrix_product_equals_convolution(patch, stride):
    x = images(2, 8, 12, 3)
    model = ViT(**(SMALL | {"patch_size": patch}), stride=stride, pool="gap", posemb="none")
    params = init(model, x)
    tokens = apply(model, params, x, mutable=["intermediates"])[1]["intermediates"]["tokens"]
    convolved = jax.lax.conv_general_dilated(
        x, params["embed"]["kernel"], stride, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = convolved.reshape(2, -1, 16) + params["embed"]["bias"].reshape(1, 1, -1)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


@pytest.mark.parametrize(("platform", "operation"), [("tpu", "conv_general_dilated"), ("cpu", "dot_general")])
def test_patches_are_a_convolution_on_tpus_and_a_product_elsewhere(platform, operation):
    with mock.patch("vit_jax.layers.patch_embed.platform", return_value=platform):
        program = jax.make_jaxpr(lambda x, kernel: convolved(x, kernel, (4, 4)))(
            images(2, 8, 8, 3), jnp.ones((4, 4, 3, 5))
        )
    found = {equation.primitive.name for equation in program.jaxpr.eqns}
    assert found & {"conv_general_dilated", "dot_general"} == {operation}


def test_same_padding_covers_every_pixel():
    model = ViT(**SMALL, padding="same", pool="gap")
    x = images(1, 9, 10, 3)
    params = init(model, x)
    gradient = jax.grad(lambda x: (apply(model, params, x) ** 2).sum())(x)
    assert params["posemb"]["table"].shape[1] == 3 * 3
    assert (jnp.abs(gradient).max(axis=3) > 0).all()


def test_sizes_that_do_not_tile_are_refused_with_the_nearest_that_do():
    with pytest.raises(UserError, match=r"width of 10 .* 8 or 12"):
        ViT(**SMALL).init(jax.random.key(0), images(1, 8, 10, 3))


def test_head_begins_at_zero_with_the_bias_asked_for():
    x = images(3, 8, 8, 3)
    model = ViT(**SMALL, head_bias=-6.9)
    np.testing.assert_allclose(jax.jit(model.init_with_output)(jax.random.key(0), x)[0], -6.9, rtol=1e-6)


def test_rep_size_is_a_tanh_layer_before_the_head():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, rep_size=24)
    params = init(model, x)
    _, sown = apply(model, params, x, mutable=["intermediates"])
    pooled, features = sown["intermediates"]["pooled"], sown["intermediates"]["features"]
    expected = jnp.tanh(pooled @ params["rep"]["kernel"] + params["rep"]["bias"].reshape(1, -1))
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_no_classes_gives_the_features():
    model = ViT(**(SMALL | {"num_classes": 0}))
    assert jax.jit(model.init_with_output)(jax.random.key(0), images(2, 8, 8, 3))[0].shape == (2, 16)


def test_intermediates_do_not_rename_parameters():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    _, sown = apply(model, variables["params"], x, mutable=["intermediates", "attention"])
    assert sown["intermediates"]["encoder"]["block_1"]["out"].shape == (2, 5, 16)
    weights = sown["attention"]["encoder"]["block_0"]["attn"]["weights"]
    assert weights.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_attention_weights_are_kept_on_request_alone():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    assert set(apply(model, params, x, mutable=["intermediates"])[1]) == {"intermediates"}


@pytest.mark.parametrize("field", ["dropout", "attn_dropout", "drop_path"])
def test_dropout_acts_in_training_alone(field):
    x = images(8, 8, 8, 3)
    model = ViT(**SMALL, **{field: 0.5})
    params = init(model, x)
    still = [apply(model, params, x) for _ in range(2)]
    moving = [apply(model, params, x, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    np.testing.assert_array_equal(*still)
    assert jnp.abs(moving[0] - moving[1]).max() > 1e-3


# Counts of timm 1.0.31 with 1000 classes, or 0 where it has no head.
DINOV2 = {"layer_scale": 1e-5, "patch_size": 14}
PATCHES_ALONE = {"pool": "gap", "norm_after_pool": True, "posemb_prefix": False}
MODELS = {
    "deit_tiny_distilled_patch16_224": (5_910_800, "Ti/16", {"distilled": True}),
    "deit3_small_patch16_224": (22_059_496, "S/16", {"layer_scale": 1e-6, "posemb_prefix": False}),
    "vit_base_patch16_clip_quickgelu_224": (86_568_424, "B/16", {"pre_norm": True, "embed_bias": False}),
    "vit_base_patch16_siglip_224": (92_884_224, "B/16", {"pool": "map", "num_classes": 0}),
    "vit_small_patch14_reg4_dinov2": (22_014_952, "S", DINOV2 | {"registers": 4, "posemb_prefix": False}),
    "vit_giant_patch14_dinov2": (
        1_136_306_664, "S", DINOV2 | {"width": 1536, "depth": 40, "num_heads": 24, "mlp_dim": 4096, "mlp": "swiglu"}
    ),
    "vit_medium_patch16_reg4_gap_256": (38_881_768, "M/16", PATCHES_ALONE | {"layer_scale": 1e-5, "registers": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_that_of_timm(name):
    published, variant, fields = MODELS[name]
    model = ViT(**({"num_classes": 1000} | parse_variant(variant) | fields))
    assert count(model, size=256 if name.endswith("256") else 224) == published


STEM = ResNet(stages=(1,), width=32)
EVERYTHING = {
    **{"stem": STEM, "registers": 3, "distilled": True, "pre_norm": True, "norm_after_pool": True, "embed_bias": False},
    **{"mlp": "swiglu", "qk_norm": True, "qkv_bias": False, "layer_scale": 0.1, "posemb_prefix": False},
}


@pytest.mark.parametrize(
    "fields", [EVERYTHING, {"pool": "map", "class_token": True, "rep_size": 8, "mlp": "quick_gelu"}]
)
def test_every_module_gives_the_dtype(fields):
    x = images(2, 16, 32, 3)
    model = ViT(**(SMALL | {"patch_size": 4 if "stem" in fields else 8} | fields), dtype="bfloat16")
    params = init(model, x)
    logits, seen = apply(model, params, x, mutable=["intermediates"], capture_intermediates=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, seen))} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    model = model.clone(param_dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


def test_tokens_are_in_the_order_class_distillation_registers_patches():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, distilled=True, registers=3, posemb="none")
    params = init(model, x)
    tokens = sown(model, params, x)["tokens"]
    assert tokens.shape == (2, 1 + 1 + 3 + 4, 16)
    prefix = jnp.concatenate([params["cls"], params["dist"], params["registers"]], axis=1)
    np.testing.assert_array_equal(tokens[:, :5], jnp.tile(prefix, (2, 1, 1)))


@pytest.mark.parametrize("fields", [{"registers": 2}, {"class_token": True}, {"class_token": True, "registers": 2}])
def test_average_is_of_the_patches_alone(fields):
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, pool="gap", **fields)
    seen = sown(model, init(model, x), x)
    np.testing.assert_allclose(seen["pooled"], seen["encoded"][:, -4:].mean(axis=1), atol=1e-6)


def test_attention_pool_sees_the_patches_alone():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, pool="map", registers=2, class_token=True, mlp="gelu")
    params = init(model, x)
    seen = sown(model, params, x)
    expected = AttentionPool(32, 2, "gelu").apply({"params": params["pool"]}, seen["encoded"][:, -4:])
    np.testing.assert_allclose(seen["pooled"], expected, atol=1e-5)


def test_registers_take_part_in_attention():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, registers=2)
    params = init(model, x)
    changed = params | {"registers": params["registers"][:, :, ::-1]}
    assert jnp.abs(apply(model, params, x) - apply(model, changed, x)).max() > 1e-3


def test_positions_of_the_patches_alone_are_zero_on_the_prefix():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, distilled=True, registers=3, posemb_prefix=False)
    params = init(model, x)
    assert params["posemb"]["table"].shape == (1, 4, 16)
    table = jnp.pad(params["posemb"]["table"], ((0, 0), (5, 0), (0, 0)))
    with_slots = apply(model.clone(posemb_prefix=True), params | {"posemb": {"table": table}}, x)
    np.testing.assert_allclose(apply(model, params, x), with_slots, atol=1e-6)


def normed(x, norm, eps=1e-6):
    """LayerNorm in numpy."""
    x = np.asarray(x, np.float64)
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * np.asarray(norm["scale"]).reshape(shape) + np.asarray(norm["bias"]).reshape(shape)


@pytest.mark.parametrize("fields", [{"pool": "gap"}, {"pool": "map"}, {"pool": "tok", "distilled": True}])
def test_norm_after_pool_is_on_what_is_pooled(fields):
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, **fields, norm_after_pool=True, norm_eps=0.1)
    params = init(model, x)
    seen = sown(model, params, x)
    assert "norm" not in params["encoder"]
    np.testing.assert_array_equal(seen["encoded"], seen["encoder"]["block_1"]["out"])
    if fields["pool"] == "gap":
        expected = normed(seen["encoded"].mean(axis=1), params["norm"], 0.1)
    elif fields["pool"] == "map":
        pooled = AttentionPool(32, 2, norm_eps=0.1).apply({"params": params["pool"]}, seen["encoded"])
        expected = normed(pooled, params["norm"], 0.1)
    else:
        expected = normed(seen["encoded"][:, :2], params["norm"], 0.1).mean(axis=1)
    np.testing.assert_allclose(seen["pooled"], expected, atol=1e-5)


def test_pre_norm_is_on_the_tokens_with_their_positions():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, pre_norm=True, embed_bias=False, norm_eps=0.1)
    params = init(model, x)
    assert set(params["embed"]) == {"kernel"}
    without = {name: leaf for name, leaf in params.items() if name != "pre_norm"}
    expected = normed(sown(model.clone(pre_norm=False), without, x)["tokens"], params["pre_norm"], 0.1)
    np.testing.assert_allclose(sown(model, params, x)["tokens"], expected, atol=1e-5)


def test_logits_of_a_distilled_model_are_the_mean_of_both_heads():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, distilled=True)
    params = init(model, x)
    logits, seen = apply(model, params, x, mutable=["intermediates"])
    seen = seen["intermediates"]
    each = []
    for i, head in enumerate([params["head"], params["head_dist"]]):
        each.append(seen["encoded"][:, i] @ head["kernel"] + head["bias"].reshape(1, -1))
    np.testing.assert_allclose(seen["logits_cls"], each[0], atol=1e-5)
    np.testing.assert_allclose(seen["logits_dist"], each[1], atol=1e-5)
    np.testing.assert_allclose(logits, (each[0] + each[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(seen["features"], seen["encoded"][:, :2].mean(axis=1), atol=1e-6)


def test_layer_scale_of_zero_leaves_the_tokens_as_they_are():
    x = images(2, 8, 8, 3)
    model = ViT(**SMALL, layer_scale=0.5, norm_after_pool=True)
    params = init(model, x)

    def zero(path, leaf):
        return 0 * leaf if "layer_scale" in jax.tree_util.keystr(path) else leaf

    seen = sown(model, jax.tree_util.tree_map_with_path(zero, params), x)
    np.testing.assert_array_equal(seen["encoded"], seen["tokens"])


def test_layer_scale_begins_at_its_value():
    params = jax.jit(ViT(**SMALL, layer_scale=0.25).init)(jax.random.key(0), images(1, 8, 8, 3))["params"]
    for name in ("layer_scale1", "layer_scale2"):
        np.testing.assert_array_equal(params["encoder"]["block_1"][name]["scale"], np.full(16, 0.25))


@pytest.mark.parametrize("norm_after_pool", [False, True])
def test_every_layer_norm_has_the_epsilon(norm_after_pool):
    x = images(1, 8, 8, 3)
    model = ViT(**SMALL, pool="map", pre_norm=True, qk_norm=True, norm_after_pool=norm_after_pool, norm_eps=1e16)
    params = init(model, x)
    _, seen = apply(
        model, params, x, mutable=["intermediates"], capture_intermediates=lambda m, _: isinstance(m, nn.LayerNorm)
    )
    biases = {name: leaf for name, leaf in trees.flatten(params).items() if "norm" in name and name.endswith("bias")}
    assert len(biases) == 2 * 4 + 3
    outputs = trees.flatten(seen["intermediates"])
    for name, bias in biases.items():
        # Such an epsilon makes a LayerNorm give its bias.
        (out,) = (leaf for key, leaf in outputs.items() if key.startswith(name.removesuffix("bias") + "__call__"))
        np.testing.assert_allclose(out, np.broadcast_to(bias, out.shape), atol=1e-4)


def test_attention_pool_of_a_gated_model_has_a_plain_mlp():
    model = ViT(**SMALL, pool="map", mlp="swiglu")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert set(params["encoder"]["block_0"]["mlp"]) == {"up", "gate", "down"}
    assert set(params["pool"]["mlp"]) == {"up", "down"}


def test_rep_size_of_zero_is_none():
    x = images(1, 8, 8, 3)
    assert "rep" not in jax.eval_shape(ViT(**SMALL, rep_size=0).init, jax.random.key(0), x)["params"]


@pytest.mark.parametrize(
    ("fields", "size", "grid"),
    [
        ({}, (8, 12), (2, 3)),
        ({"stride": 2}, (8, 12), (3, 5)),
        ({"padding": "same"}, (9, 10), (3, 3)),
        ({"stem": STEM, "patch_size": 2}, (32, 24), (4, 3)),
        ({"stem": ResNet(stages=(1, 1), width=32), "patch_size": 1}, (32, 17), (4, 3)),
    ],
)
def test_grid_is_that_of_the_patches(fields, size, grid):
    model = ViT(**(SMALL | fields), pool="gap")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))["params"]
    assert model.grid(size) == grid
    assert params["posemb"]["table"].shape[1] == grid[0] * grid[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "tok", "class_token": False}, "class_token=True"),
        ({"pool": "gap", "distilled": True}, "pool='gap'.*give pool='tok'"),
        ({"distilled": True, "rep_size": 8}, "rep_size=8"),
        ({"registers": -1}, "registers=-1"),
        ({"rep_size": -1}, "rep_size=-1"),
    ],
)
def test_impossible_combinations_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ViT(**SMALL, **fields)


def test_variant_may_be_any_patch_size():
    assert parse_variant("So400m/14")["patch_size"] == 14
    assert "patch_size" not in parse_variant("S")


@pytest.mark.parametrize("variant", ["b/16", "Huge/14", "S/x", "S/0", "S/-4", ""])
def test_unknown_variants_are_refused(variant):
    with pytest.raises(UserError, match="variant="):
        parse_variant(variant)
