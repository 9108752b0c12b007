"""Bilinear resizing as matrix products, so that sizes may differ from image to image without recompiling."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Map = Float[Array, "b h w c"]
Resized = Float[Array, "b h2 w2 c"]


def weights(old: Any, new: Any, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """Return the weights of `old` pixels for `new` pixels, two numbers, on axes that may be longer than both.

    Pixel centres are at halves, and values are constant beyond the first and the last centre, as in torch's interpolate
    with align_corners=False and without antialiasing.
    """
    at = jnp.clip((jnp.arange(rows) + 0.5) * (old / new) - 0.5, 0.0, old - 1.0)
    return jax.nn.relu(1.0 - jnp.abs(at[:, None] - jnp.arange(columns)[None]))


def bilinear(x: Map, size: tuple[int, int]) -> Resized:
    """Resize maps to (height, width)."""
    if x.shape[1:3] == size:
        return x
    across, down = (weights(old, new, new, old) for old, new in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,jw,bhwc->bijc", across, down, x, precision=jax.lax.Precision.HIGHEST)


def bilinear_of_parts(x: Map, old: Array, new: Array, canvas: tuple[int, int]) -> Resized:
    """Resize the upper left part of each map, `old` [b, 2] (height, width), to `new` [b, 2] on a canvas.

    Beyond the new size the canvas repeats the border.
    """
    across, down = (
        jax.vmap(lambda a, b, i=i: weights(a, b, canvas[i], x.shape[1 + i]))(old[:, i], new[:, i]) for i in (0, 1)
    )
    return jnp.einsum("bih,bjw,bhwc->bijc", across, down, x, precision=jax.lax.Precision.HIGHEST)


def adaptive_mean(x: Map, size: int) -> Resized:
    """Return the means of size x size bins that cover the map, like torch's AdaptiveAvgPool2d."""

    def bins(length: int) -> Float[np.ndarray, "i h"]:
        at, i = np.arange(length)[None], np.arange(size)[:, None]
        inside = (at >= i * length // size) & (at < -(-(i + 1) * length // size))
        return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)

    across, down = bins(x.shape[1]), bins(x.shape[2])
    return jnp.einsum("ih,jw,bhwc->bijc", across, down, x, precision=jax.lax.Precision.HIGHEST)
