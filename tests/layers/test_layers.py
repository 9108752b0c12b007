import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vit_jax.layers.attention import Attention
from vit_jax.layers.block import Block
from vit_jax.layers.drop import DropPath, drop_path_rates
from vit_jax.layers.encoder import Encoder
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.patch_embed import patch_grid
from vit_jax.layers.posemb import sincos2d
from vit_jax.types import UserError


def test_attention_equals_jax_dot_product_attention():
    q, kv = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (2, 7, 8))
    layer = Attention(num_heads=2)
    params = jax.jit(layer.init)(jax.random.key(2), q, kv)["params"]
    project = {
        n: jnp.einsum("bnd,dkh->bnkh", x, params[n]["kernel"]) for n, x in (("query", q), ("key", kv), ("value", kv))
    }
    mixed = jax.nn.dot_product_attention(project["query"], project["key"], project["value"])
    expected = jnp.einsum("bnkh,khd->bnd", mixed, params["out"]["kernel"])
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, q, kv), expected, atol=1e-5)


def test_key_bias_has_no_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = Attention(num_heads=2)
    params = jax.jit(layer.init)(jax.random.key(2), x, x)["params"]
    grads = jax.grad(lambda p: (layer.apply({"params": p}, x, x) ** 2).sum())(params)
    assert jnp.abs(grads["key"]["bias"]).max() < 1e-5 < jnp.abs(grads["query"]["bias"]).max()


def test_heads_must_divide_the_width():
    x = jnp.zeros((1, 2, 8))
    with pytest.raises(UserError, match="num_heads=3"):
        Attention(num_heads=3).init(jax.random.key(0), x, x)


def test_drop_path_keeps_branches_as_they_are_without_scaling():
    x = jax.random.normal(jax.random.key(0), (64, 3, 8))
    drawn = [
        DropPath(0.4, scale).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(1)})
        for scale in (True, False)
    ]
    kept = np.asarray(drawn[1][:, 0, 0] != 0)
    assert 20 < kept.sum() < 55
    np.testing.assert_array_equal(drawn[1], np.where(kept[:, None, None], x, 0))
    np.testing.assert_allclose(drawn[0], drawn[1] / 0.6, rtol=1e-6)


def test_mlp_treats_every_token_alike():
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    layer = Mlp(16)
    params = jax.jit(layer.init)(jax.random.key(1), x)
    np.testing.assert_allclose(
        jax.jit(layer.apply)(params, x)[:, ::-1], jax.jit(layer.apply)(params, x[:, ::-1]), atol=1e-6
    )


def mlp(kind):
    """An MLP, its parameters with no leaf at its default, and tokens that reach far into the tails."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(3.0 * rng.standard_normal((2, 4, 8)), jnp.float32)
    layer = Mlp(16, kind=kind)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    return layer, params, x


def dense(x, layer):
    return np.asarray(x, np.float64) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]).reshape(1, 1, -1)


GELUS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


@pytest.mark.parametrize("kind", GELUS)
def test_mlp_has_the_gelu_asked_for(kind):
    layer, params, x = mlp(kind)
    expected = dense(GELUS[kind](dense(x, params["up"])), params["down"])
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), expected, atol=2e-4)


def test_swiglu_is_by_hand():
    layer, params, x = mlp("swiglu")
    gate = dense(x, params["gate"])
    expected = dense(gate / (1 + np.exp(-gate)) * dense(x, params["up"]), params["down"])
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-3)


def test_scale_of_normalised_queries_and_keys_does_not_matter():
    x = 10.0 * jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = Attention(num_heads=2, qk_norm=True, qkv_bias=False)
    params = jax.jit(layer.init)(jax.random.key(1), x, x)["params"]
    assert params["query_norm"]["scale"].shape == params["key_norm"]["bias"].shape == (4,)
    assert all(set(params[name]) == {"kernel"} for name in ("query", "key", "value"))
    scaled = params | {
        "query": {"kernel": 7 * params["query"]["kernel"]},
        "key": {"kernel": 5 * params["key"]["kernel"]},
    }
    expected = jax.jit(layer.apply)({"params": params}, x, x)
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": scaled}, x, x), expected, atol=1e-4)
    plain = {name: leaf for name, leaf in params.items() if not name.endswith("_norm")}
    assert jnp.abs(layer.clone(qk_norm=False).apply({"params": plain}, x, x) - expected).max() > 1e-2


def test_normalised_queries_and_keys_are_those_of_each_head():
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    layer = Attention(num_heads=2, qk_norm=True, norm_eps=0.1)
    params = jax.jit(layer.init)(jax.random.key(1), x, x)["params"]
    scale, bias = np.array([1.0, 2.0, -1.0, 0.5], np.float32), np.array([0.1, 0.0, -0.2, 0.3], np.float32)
    params |= {"query_norm": {"scale": scale, "bias": bias}, "key_norm": {"scale": bias, "bias": scale}}
    _, sown = layer.apply({"params": params}, x, x, mutable=["attention"])

    def normed(name, norm):
        y = np.einsum("nd,dkh->knh", x[0], params[name]["kernel"])
        y = (y - y.mean(axis=-1, keepdims=True)) / np.sqrt(y.var(axis=-1, keepdims=True) + 0.1)
        return y * norm["scale"] + norm["bias"]

    scores = np.einsum("kqh,knh->kqn", normed("query", params["query_norm"]), normed("key", params["key_norm"])) / 2
    expected = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(sown["attention"]["weights"][0], expected, atol=1e-5)


def test_layer_scale_multiplies_what_each_branch_adds():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    layer = Block(16, 2, layer_scale=0.1)
    params = jax.jit(layer.init)(jax.random.key(1), x)["params"]
    rng = np.random.default_rng(0)
    params |= {name: {"scale": rng.standard_normal(8).astype(np.float32)} for name in ("layer_scale1", "layer_scale2")}
    scale1, scale2 = params["layer_scale1"]["scale"], params["layer_scale2"]["scale"]
    plain = {name: params[name] for name in ("norm1", "norm2", "attn", "mlp")}
    plain["attn"] = plain["attn"] | {
        "out": jax.tree.map(lambda leaf: leaf * np.broadcast_to(scale1, leaf.shape), params["attn"]["out"])
    }
    plain["mlp"] = plain["mlp"] | {
        "down": jax.tree.map(lambda leaf: leaf * np.broadcast_to(scale2, leaf.shape), params["mlp"]["down"])
    }
    expected = layer.clone(layer_scale=None).apply({"params": plain}, x)
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), expected, atol=1e-5)


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


@pytest.mark.parametrize(("rule", "rates"), [("linear", [0.0, 0.1, 0.2]), ("constant", [0.2, 0.2, 0.2])])
def test_stochastic_depth_grows_or_stays(rule, rates):
    np.testing.assert_allclose(drop_path_rates(0.2, 3, rule), rates)
    drops = []

    class Seen(nn.Module):
        drop_path: float

        def __call__(self, x, mask, *, deterministic):
            drops.append(self.drop_path)
            return x

    Encoder(Seen, 3, 0.2, rule, norm=False).apply({}, jnp.zeros((1, 2, 4)))
    np.testing.assert_allclose(drops, rates)
