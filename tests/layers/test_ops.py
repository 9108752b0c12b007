import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vit_jax.layers import attend, ops
from vit_jax.layers.dense import Dense
from vit_jax.layers.mlp import GELUS

RNG = np.random.default_rng(0)
ROUNDED = {"float32": 1e-5, "float16": 2**-9, "bfloat16": 2**-6}  # of a few roundings to 8 bits
# x, kernel, and how many dimensions are summed; with and without common factors with a block.
LINEAR = {
    "rows": ((2, 3, 8), (8, 5), 1),
    "heads": ((2, 3, 8), (8, 2, 4), 1),
    "out": ((2, 3, 2, 4), (2, 4, 5), 2),
    "blocks": ((32, 64), (64, 48), 1),
    "one": ((1, 7), (7, 1), 1),
}
MATMUL = {
    "scores": ((2, 3, 5, 8), (2, 3, 7, 8), True),
    "values": ((2, 3, 5, 7), (2, 3, 7, 8), False),
    "one query": ((2, 3, 1, 7), (2, 3, 7, 8), False),
    "blocks": ((4, 32, 16), (4, 48, 16), True),
}


def drawn(shape, dtype):
    return jnp.asarray(RNG.standard_normal(shape).astype(dtype))


def with_gradients(function, gradient, *given):
    """Return the result and its gradients, of one compiled program."""

    @jax.jit
    def both(gradient, given):
        out, back = jax.vjp(function, *given)
        return out, *back(gradient)

    return jax.device_get(both(gradient, given))


def assert_same(ours, exact, dtype, *given):
    """Check results and gradients in `dtype` against `exact` in float32, with errors relative to the largest value."""
    gradient = drawn(jax.eval_shape(ours, *given).shape, dtype)
    found = with_gradients(ours, gradient, *given)
    wanted = with_gradients(exact, *(x.astype("float32") for x in (gradient, *given)))
    assert found[0].dtype == dtype
    for one, other in zip(found, wanted, strict=True):
        bound = ROUNDED[dtype] * np.abs(other).max()
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=0, atol=bound)


@pytest.fixture(params=[False, True], ids=["no units", "units"])
def units(request, monkeypatch):
    monkeypatch.setattr(ops, "_has_units", lambda: request.param)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_and_its_gradients_are_those_of_jax(name, dtype, units):
    left, right, inputs = LINEAR[name]
    given = drawn(left, dtype), drawn(right, dtype), drawn(right[inputs:], "float32")

    def exact(x, kernel, bias):
        return jnp.tensordot(x, kernel, inputs) + bias.reshape((1,) * (x.ndim - inputs) + bias.shape)

    assert_same(lambda *given: ops.linear(*given, inputs), exact, dtype, *given)
    assert_same(
        lambda *given: ops.linear(*given, None, inputs), lambda *g: jnp.tensordot(*g, inputs), dtype, *given[:2]
    )


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", MATMUL)
def test_matmul_and_its_gradients_are_those_of_jax(name, dtype, units):
    left, right, transposed = MATMUL[name]

    def exact(x, y):
        return x @ (y.swapaxes(-1, -2) if transposed else y)

    given = drawn(left, dtype), drawn(right, dtype)
    assert_same(lambda x, y: ops.matmul(x, y, dtype, transposed), exact, dtype, *given)
    assert_same(lambda x, y: ops.matmul(x, y, "float32", transposed).astype(dtype), exact, dtype, *given)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_softmax_and_its_gradient_are_those_of_jax(dtype):
    scores = 3 * drawn((2, 3, 5, 7), "float32")
    gradient = drawn(scores.shape, dtype).astype("float32")
    found = with_gradients(lambda scores: ops.softmax(scores, dtype).astype("float32"), gradient, scores)
    wanted = with_gradients(jax.nn.softmax, gradient, scores)
    np.testing.assert_allclose(found[0], wanted[0], atol=ROUNDED[dtype])
    np.testing.assert_allclose(found[1], wanted[1], atol=2 * ROUNDED[dtype])


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", GELUS)
def test_activations_and_their_gradients_are_those_in_float32(name, dtype):
    x = 2 * drawn((2, 3, 8), dtype)
    assert_same(lambda x: ops.elementwise(GELUS[name], x), GELUS[name], dtype, x)


@pytest.mark.parametrize(("name", "features"), [("rows", 5), ("heads", (2, 4)), ("out", 5)])
def test_a_dense_layer_begins_and_computes_as_that_of_flax(name, features):
    shape, _, inputs = LINEAR[name]
    x = drawn(shape, "float32")
    options = {"kernel_init": nn.initializers.xavier_uniform(), "bias_init": nn.initializers.normal(1.0)}
    theirs = nn.DenseGeneral(features, axis=tuple(range(-inputs, 0)), **options)
    ours, key = Dense(features, inputs, **options), jax.random.key(0)
    params = ours.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(key, x))
    np.testing.assert_array_equal(ours.apply(params, x), theirs.apply(params, x))


def test_backward_products_in_bfloat16_are_of_matrices_as_they_lie_in_memory():
    """A product that XLA folds a transpose into has other dimensions, and would be slow."""
    x, kernel, bias = drawn((64, 32), "bfloat16"), drawn((32, 48), "bfloat16"), drawn((48,), "float32")
    heads = [drawn((2, 32, 4, 16), "bfloat16") for _ in range(3)]

    def loss(given, heads):
        return ops.linear(*given).sum(dtype="float32") + attend.plain(*heads).sum(dtype="float32")

    text = jax.jit(jax.grad(loss, (0, 1))).lower((x, kernel, bias), heads).compile().as_text()
    dots = re.findall(r"= f32\[[\d,]+\]\S* dot\((.*?), (.*?)\), (.*)", text)
    assert len(dots) >= 8  # of each 3 and 5, but for those whose results no one needs
    for left, right, numbers in dots:
        if ops._has_units():
            assert [re.search(rf"{re.escape(name)} = (\w+)\[", text)[1] for name in (left, right)] == ["bf16"] * 2
        batch = "lhs_batch_dims={0}" in numbers
        summed = [int(re.search(rf"{side}_contracting_dims={{(\d)}}", numbers)[1]) - batch for side in ("lhs", "rhs")]
        assert summed in ([1, 0], [1, 1])
