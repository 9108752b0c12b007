"""Checksums of arrays that do not depend on how they are sharded, so that a run may resume on other devices and still check."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return a checksum of 32 bits, as hexadecimal digits, for each array; computed where the array is.

    It is the sum, modulo 2^32, of a hash of every word and its position. For a given position the hash is a bijection of the
    word, so that a change of one word always changes the sum; any other change does with probability 1 - 2^-32.
    """
    sums = {name: _sum(array) for name, array in arrays.items()}
    return {name: f"{int(value):08x}" for name, value in jax.device_get(sums).items()}


@jax.jit
def _sum(array: Array) -> UInt32[Array, ""]:
    bits = array.astype(jnp.uint8) if array.dtype == bool else array
    # Words of 32 bits, or of the size of the elements where that is smaller; larger elements become a last dimension.
    words = jax.lax.bitcast_convert_type(bits, f"uint{8 * min(bits.dtype.itemsize, 4)}").astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ _mix(position + jnp.uint32(1))), dtype=jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the finalizer of MurmurHash3 (32 bits), which is a bijection."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
