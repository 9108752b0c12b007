import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.attention import Attention
from vit_jax.layers.drop import DropPath
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.patch_embed import patch_grid
from vit_jax.layers.posemb import sincos2d
from vit_jax.types import UserError


def test_attention_equals_jax_dot_product_attention():
    q, kv = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (2, 7, 8))
    layer = Attention(num_heads=2)
    params = layer.init(jax.random.key(2), q, kv)["params"]
    project = {
        n: jnp.einsum("bnd,dkh->bnkh", x, params[n]["kernel"]) for n, x in (("query", q), ("key", kv), ("value", kv))
    }
    mixed = jax.nn.dot_product_attention(project["query"], project["key"], project["value"])
    expected = jnp.einsum("bnkh,khd->bnd", mixed, params["out"]["kernel"])
    np.testing.assert_allclose(layer.apply({"params": params}, q, kv), expected, atol=1e-5)


def test_key_bias_has_no_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = Attention(num_heads=2)
    params = layer.init(jax.random.key(2), x, x)["params"]
    grads = jax.grad(lambda p: (layer.apply({"params": p}, x, x) ** 2).sum())(params)
    assert jnp.abs(grads["key"]["bias"]).max() < 1e-5 < jnp.abs(grads["query"]["bias"]).max()


def test_heads_must_divide_the_width():
    x = jnp.zeros((1, 2, 8))
    with pytest.raises(UserError, match="num_heads=3"):
        Attention(num_heads=3).init(jax.random.key(0), x, x)


def test_mlp_treats_every_token_alike():
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    layer = Mlp(16)
    params = layer.init(jax.random.key(1), x)
    np.testing.assert_allclose(layer.apply(params, x)[:, ::-1], layer.apply(params, x[:, ::-1]), atol=1e-6)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    out = DropPath(0.25).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    assert (out == out[:, :1, :1] * jnp.ones((1, 2, 3))).all()
    assert abs(float(out.mean()) - 1) < 0.05


def test_sincos2d_is_by_hand():
    table = sincos2d(2, 3, 8)
    x, y = 2.0, 1.0  # the last patch, at column 2 of row 1; the frequencies are 1 and 1 / 10000
    expected = [
        np.sin(x),
        np.sin(x / 1e4),
        np.cos(x),
        np.cos(x / 1e4),
        np.sin(y),
        np.sin(y / 1e4),
        np.cos(y),
        np.cos(y / 1e4),
    ]
    np.testing.assert_allclose(table[5], expected, rtol=1e-5)


def test_sincos2d_needs_four_equal_parts():
    with pytest.raises(UserError, match="divisible by 4; found 6"):
        sincos2d(2, 2, 6)


@pytest.mark.parametrize(
    ("size", "patch", "stride", "padding", "grid"),
    [
        ((224, 224), 16, 16, "valid", (14, 14)),
        ((32, 48), 8, 4, "valid", (7, 11)),
        ((9, 10), 4, 4, "same", (3, 3)),
        ((9, 10), 4, 2, "same", (5, 5)),
    ],
)
def test_patch_grid(size, patch, stride, padding, grid):
    assert patch_grid(size, (patch, patch), (stride, stride), padding) == grid
