import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.sizes import SIZES, parse_variant
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

SMALL = {"num_classes": 5, "width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}


def images(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def init(model, x):
    """Parameters with no leaf at its default, so that nothing is hidden by zeros."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def apply(model, params, x, **arguments):
    return jax.jit(lambda params, x: model.apply({"params": params}, x, **arguments))(params, x)


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


@pytest.mark.parametrize(("variant", "pool", "count"), COUNTS)
def test_parameter_count_is_the_published_one(variant, pool, count):
    model = ViT(num_classes=1000, pool=pool, **parse_variant(variant))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_every_size_gives_logits(size, pool):
    model = ViT(num_classes=10, pool=pool, posemb="sincos2d", **parse_variant(f"{size}/14"))
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
    assert model.init(jax.random.key(0), x)["params"]["posemb"]["table"].shape == (1, 1 + 4 * 2, 16)


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


def test_variant_may_be_any_patch_size():
    assert parse_variant("So400m/14")["patch_size"] == 14
    assert "patch_size" not in parse_variant("S")


@pytest.mark.parametrize("variant", ["b/16", "Huge/14", "S/x", "S/0", "S/-4", ""])
def test_unknown_variants_are_refused(variant):
    with pytest.raises(UserError, match="variant="):
        parse_variant(variant)
