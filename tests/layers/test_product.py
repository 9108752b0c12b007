import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers import product

RNG = np.random.default_rng(0)
SHAPES = {
    "Dense": ((2, 3, 8), (8, 5), (((2,), (0,)), ((), ()))),
    "heads": ((2, 3, 8), (8, 2, 4), (((2,), (0,)), ((), ()))),
    "out": ((2, 3, 2, 4), (2, 4, 5), (((2, 3), (0, 1)), ((), ()))),
    "other": ((8, 3), (8, 5), (((0,), (0,)), ((), ()))),
}


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_products_and_their_derivatives_are_those_of_jax(name, dtype, units, monkeypatch):
    monkeypatch.setattr(product, "_has_units", lambda: units)
    left, right, numbers = SHAPES[name]
    x, kernel = (jnp.asarray(RNG.standard_normal(shape), dtype) for shape in (left, right))

    gradient = jnp.asarray(RNG.standard_normal(jax.lax.dot_general(x, kernel, numbers).shape), dtype)

    def run(dot, x, kernel):
        out, back = jax.vjp(lambda x, kernel: dot(x, kernel, numbers), x, kernel)
        return out, *back(gradient.astype(out.dtype))

    ours = jax.jit(lambda x, kernel: run(product.dot_general, x, kernel))(x, kernel)
    exact = run(jax.lax.dot_general, x.astype("float32"), kernel.astype("float32"))
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == dtype
        bound = 1e-5 if dtype == "float32" else 2**-8  # of one rounding to 8 bits
        np.testing.assert_allclose(one.astype("float32"), other, rtol=bound, atol=bound)
