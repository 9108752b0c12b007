"""Matrix products of linear layers, in a form that is fast on the processor."""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.sharding import on_cpu

# The flags of x86 processors with instructions for products of bfloat16.
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16")


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, *arguments: Any, **options: Any) -> Array:
    """Compute jax.lax.dot_general, with a faster form for 16-bit numbers on CPUs.

    The faster form is for products of the last dimensions of x with the first dimensions of the kernel. XLA:CPU is slow
    at products with 16-bit results, so the product is accumulated and returned in float32 and then rounded, which is
    also more accurate. Processors without units for bfloat16 multiply in float32.
    """
    (of_x, of_kernel), batch = dimension_numbers
    shared, last = len(of_x), tuple(range(x.ndim - len(of_x), x.ndim))
    fits = tuple(of_x) == last and tuple(of_kernel) == tuple(range(shared)) and not any(map(len, batch))
    if not fits or x.dtype.itemsize != 2:
        return jax.lax.dot_general(x, kernel, dimension_numbers, *arguments, **options)

    def general(x: Array, kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel, dimension_numbers, *arguments, **options)

    def faster(x: Array, kernel: Array) -> Array:
        rows, columns = x.shape[: x.ndim - shared], kernel.shape[shared:]
        size = math.prod(kernel.shape[:shared])
        return _product(x.reshape(-1, size), kernel.reshape(size, -1)).reshape(*rows, *columns)

    return on_cpu(faster, general, x, kernel)


@functools.cache
def _has_units() -> bool:
    try:
        return any(name in Path("/proc/cpuinfo").read_text() for name in BFLOAT16_UNITS)
    except OSError:
        return False


def _in_float32(left: Float[Array, "m k"], right: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """Return the product of 16-bit matrices in float32."""
    if not _has_units():
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _product(x: Float[Array, "m k"], kernel: Float[Array, "k n"]) -> Float[Array, "m n"]:
    return _in_float32(x, kernel).astype(x.dtype)


def _forward(x: Float[Array, "m k"], kernel: Float[Array, "k n"]):
    return _product(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Float[Array, "m n"]):
    x, kernel = kept
    return _in_float32(gradient, kernel.T).astype(x.dtype), _in_float32(x.T, gradient).astype(kernel.dtype)


_product.defvjp(_forward, _backward)
