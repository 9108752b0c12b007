"""Products, softmax and activations of the layers, with separate forms for 16-bit numbers on CPUs.

XLA:CPU is fast at products of 16-bit matrices with float32 results that sum the last dimension of the first operand with
the first of the second. It is 4 to 9 times slower at other layouts and at 16-bit results, even with AMX units (jax 0.10.2
and 0.12.0), and it rounds after every elementwise operation. The CPU forms only use the fast products, forward and
backward, compute the rest in float32 and round the results. Other platforms and 32-bit numbers use the plain forms.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_jax.sharding import on_cpu

# The flags of x86 processors with instructions for products of bfloat16.
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16")
BLOCK = 16  # rows and columns of an AMX tile, and of the blocks in which a matrix is transposed


def linear(x: Array, kernel: Array, bias: Array | None = None, inputs: int = 1) -> Array:
    """Map x [..., *inputs] to [..., *outputs] by a kernel [*inputs, *outputs] and a bias [*outputs], in x's dtype.

    inputs: how many dimensions are summed.
    """
    fast, plain = (functools.partial(form, inputs=inputs) for form in (_fast_linear, _plain_linear))
    return _choose(x.dtype, fast, plain, x, kernel, bias)


def matmul(x: Array, y: Array, dtype: DTypeLike, transposed: bool = False) -> Array:
    """Return the products in `dtype` of matrices x [..., m, k] and y [..., k, n], or [..., n, k] if `transposed`."""
    fast, plain = (
        functools.partial(form, dtype=dtype, transposed=transposed) for form in (_fast_matmul, _plain_matmul)
    )
    return _choose(x.dtype, fast, plain, x, y)


def softmax(scores: Array, dtype: DTypeLike) -> Array:
    """Return the softmax over the last dimension, rounded to `dtype`; it is computed in the scores' dtype."""
    fast, plain = (functools.partial(form, dtype=dtype) for form in (_softmax, _plain_softmax))
    return _choose(dtype, fast, plain, scores)


def elementwise(function: Callable[[Array], Array], x: Array) -> Array:
    """Return function(x), for an activation function that computes each element by itself."""
    return _choose(x.dtype, functools.partial(_elementwise, function), function, x)


def _plain_linear(x: Array, kernel: Array, bias: Array | None, inputs: int) -> Array:
    summed = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    out = jax.lax.dot_general(x, kernel.astype(x.dtype), (summed, ((), ())))
    return out if bias is None else out + bias.astype(out.dtype).reshape(*[1] * (x.ndim - inputs), *bias.shape)


def _fast_linear(x: Array, kernel: Array, bias: Array | None, inputs: int) -> Array:
    matrix = kernel.astype(x.dtype).reshape(math.prod(kernel.shape[:inputs]), -1)
    flat = None if bias is None else bias.reshape(-1)
    out = _linear(x.reshape(-1, len(matrix)), matrix, flat)
    return out.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])


def _plain_matmul(x: Array, y: Array, dtype: DTypeLike, transposed: bool) -> Array:
    return jax.lax.dot_general(x, y, _dimensions(x.ndim, transposed)).astype(dtype)


def _fast_matmul(x: Array, y: Array, dtype: DTypeLike, transposed: bool) -> Array:
    # A second batch dimension would be slow.
    left, right = (a.reshape(-1, *a.shape[-2:]) for a in (x, y))
    return _matmul(left, right, transposed).astype(dtype).reshape(*x.shape[:-1], -1)


def _plain_softmax(scores: Array, dtype: DTypeLike) -> Array:
    return jax.nn.softmax(scores).astype(dtype)


def _choose(dtype: DTypeLike, fast: Callable[..., Array], plain: Callable[..., Array], *arrays: Any) -> Array:
    return on_cpu(fast, plain, *arrays) if jnp.dtype(dtype).itemsize == 2 else plain(*arrays)


@functools.cache
def _has_units() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(name in flags for name in BFLOAT16_UNITS)


def _dimensions(ndim: int, transposed: bool) -> Any:
    """Return the dimension numbers of a product whose leading dimensions are batches."""
    batch, last = tuple(range(ndim - 2)), ndim - 1
    return ((last,), (last if transposed else last - 1,)), (batch, batch)


def _product(x: Array, y: Array, transposed: bool = False) -> Float[Array, "..."]:
    """Return the product of 16-bit matrices in float32, with at most one batch dimension."""
    if not _has_units() or x.dtype != jnp.bfloat16:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jax.lax.dot_general(x, y, _dimensions(x.ndim, transposed), preferred_element_type=jnp.float32)


def _transpose(x: Array) -> Array:
    """Return the transposes [..., n, m] of matrices [..., m, n], copied in blocks.

    XLA folds a plain transpose into the product, which then has a slow layout.
    """
    *batch, m, n = x.shape
    rows, columns, b = math.gcd(m, BLOCK), math.gcd(n, BLOCK), len(batch)
    blocks = x.reshape(*batch, m // rows, rows, n // columns, columns)
    return blocks.transpose(*range(b), b + 2, b + 3, b, b + 1).reshape(*batch, n, m)


@jax.custom_vjp
def _linear(x: Float[Array, "m k"], kernel: Float[Array, "k n"], bias: Float[Array, "n"] | None) -> Float[Array, "m n"]:
    out = _product(x, kernel)
    return (out if bias is None else out + bias.astype(jnp.float32).reshape(1, -1)).astype(x.dtype)


def _linear_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, Any]:
    return _linear(x, kernel, bias), (x, kernel, bias)


def _linear_backward(kept: Any, gradient: Float[Array, "m n"]) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = kept
    to_x = _product(gradient, _transpose(kernel)).astype(x.dtype)
    # Of the two operands, the narrower one is transposed.
    narrow = x.shape[1] <= gradient.shape[1]
    to_kernel = _product(_transpose(x), gradient) if narrow else _transpose(_product(_transpose(gradient), x))
    if bias is None:
        return to_x, to_kernel.astype(kernel.dtype), None
    ones = jnp.ones((BLOCK, len(gradient)), gradient.dtype)
    return to_x, to_kernel.astype(kernel.dtype), _product(ones, gradient)[0].astype(bias.dtype)


_linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, y: Array, transposed: bool) -> Array:
    return _product(x, y, transposed)


def _matmul_forward(x: Array, y: Array, transposed: bool) -> tuple[Array, Any]:
    return _matmul(x, y, transposed), (x, y)


def _matmul_backward(transposed: bool, kept: Any, gradient: Array) -> tuple[Array, Array]:
    x, y = kept
    gradient = gradient.astype(x.dtype)
    to_x = _product(gradient, y if transposed else _transpose(y))
    to_y = _product(_transpose(gradient), x) if transposed else _product(_transpose(x), gradient)
    return to_x.astype(x.dtype), to_y.astype(y.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(scores: Array, dtype: DTypeLike) -> Array:
    return jax.nn.softmax(scores).astype(dtype)


def _softmax_forward(scores: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    return (weights := _softmax(scores, dtype)), weights


def _softmax_backward(dtype: DTypeLike, weights: Array, gradient: Array) -> tuple[Array]:
    weights, gradient = weights.astype(jnp.float32), gradient.astype(jnp.float32)
    return (weights * (gradient - (weights * gradient).sum(-1, keepdims=True)),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _elementwise(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x.astype(jnp.float32)).astype(x.dtype)


def _elementwise_forward(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return _elementwise(function, x), x


def _elementwise_backward(function: Callable[[Array], Array], x: Array, gradient: Array) -> tuple[Array]:
    _, back = jax.vjp(function, jax.lax.optimization_barrier(x).astype(jnp.float32))
    return (back(gradient.astype(jnp.float32))[0].astype(x.dtype),)


_elementwise.defvjp(_elementwise_forward, _elementwise_backward)
