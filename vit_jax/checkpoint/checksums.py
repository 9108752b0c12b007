"""Checksums of arrays that do not depend on their sharding, so that a run can resume on other devices and still check.

The checksum has 32 bits. It is the sum, modulo 2^32, of a hash of every word and its position. For a given position the
hash is a bijection of the word, so that a change of one word always changes the sum; any other change does with
probability 1 - 2^-32.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

BLOCK = 2**20  # words that are hashed at a time on the host


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksum of each array as hexadecimal digits, computed on the devices of the array, or on the host for a CPU."""
    on_host = jax.default_backend() == "cpu" and jax.process_count() == 1
    sums = {name: (host_sum if on_host else device_sum)(array) for name, array in arrays.items()}
    return {name: f"{int(value):08x}" for name, value in jax.device_get(sums).items()}


def host_sum(array: Any) -> int:
    """Return the checksum of an array, computed with NumPy, which compiles nothing."""
    array = np.asarray(array)
    array = np.ascontiguousarray(array, jax.dtypes.canonicalize_dtype(array.dtype)).reshape(-1)
    words = array.view(f"uint{8 * min(array.dtype.itemsize, 4)}")
    total = 0
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].astype(np.uint32)
        position = np.arange(start, start + len(block), dtype=np.uint64).astype(np.uint32)
        total += int(np.sum(_hash(block, position), dtype=np.uint64))
    return total % 2**32


@jax.jit
def device_sum(array: Array) -> UInt32[Array, ""]:
    """Return the checksum of an array that may be sharded."""
    bits = array.astype(jnp.uint8) if array.dtype == bool else array
    # Words of 32 bits, or of the size of the elements if that is smaller; larger elements become a last dimension.
    words = jax.lax.bitcast_convert_type(bits, f"uint{8 * min(bits.dtype.itemsize, 4)}").astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_hash(words, position), dtype=jnp.uint32)


def _hash(words: Any, position: Any) -> Any:
    return _mix(words ^ _mix(position + np.uint32(1)))


def _mix(x: Any) -> Any:
    """Return the finalizer of MurmurHash3 (32 bits), which is a bijection."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
