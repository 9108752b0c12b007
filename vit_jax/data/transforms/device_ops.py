"""Random operations on a whole batch inside the compiled step, for data that stays on the devices.

Each maker takes the arguments of its namesake in ops.py and returns a function of (key, images uint8 [b, h, w, c]). The draws
differ from the host's, but have the same distributions.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from vit_jax.data.transforms.ops import Size, padded_positions
from vit_jax.types import ByteImages, Rng, UserError

DeviceOp = Callable[[Rng, Array], Array]


def flip() -> DeviceOp:
    """Mirror left and right with probability 1/2."""

    def op(rng: Rng, images: ByteImages) -> ByteImages:
        mirrored = jax.random.bernoulli(rng, shape=(len(images), 1, 1, 1))
        return jnp.where(mirrored, images[:, :, ::-1], images)

    return op


def pad_crop(size: Size, padding: int, mode: Literal["reflect", "zero"] = "reflect") -> DeviceOp:
    """Pad every side by `padding` pixels and cuts a random window of `size` (arXiv:1512.03385, section 4.2)."""
    window = (size, size) if isinstance(size, int) else size

    def op(rng: Rng, images: ByteImages) -> UInt8[Array, "b h2 w2 c"]:
        sides = images.shape[1:3]
        free = np.array(sides) + 2 * padding - np.array(window)
        if padding < 0 or min(window) < 1 or min(free) < 0:
            raise UserError(
                f"Found images of {sides[0]} x {sides[1]} pixels, which pad_crop({size}, {padding}) cannot cut: put resize "
                "before it or pad more."
            )
        starts = jax.random.randint(rng, (len(images), 2), 0, jnp.asarray(free + 1).reshape(1, 2))

        def cut(image: Array, start: Array) -> Array:
            inside = []
            for axis in (0, 1):
                at = start[axis] + jnp.arange(window[axis])
                image = jnp.take(image, jnp.asarray(padded_positions(sides[axis], padding))[at], axis=axis)
                inside.append((at >= padding) & (at < padding + sides[axis]))
            seen = inside[0][:, None, None] & inside[1][None, :, None]
            return jnp.where(seen, image, 0).astype(image.dtype) if mode == "zero" else image

        return jax.vmap(cut)(images, starts)

    return op


DEVICE_OPS = {op.__name__: op for op in (flip, pad_crop)}
