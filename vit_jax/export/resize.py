"""Resize and crop inside a program, for images whose size is only known at run time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vit_jax.pretrained.pretrained import Preprocessing

# By their Pillow names; both libraries antialias, and both cubic filters have a = -0.5.
METHODS = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}


def resized(images: UInt8[Array, "b h w c"], preprocessing: Preprocessing) -> UInt8[Array, "b h2 w2 c"]:
    """Resize and crop images like the host transforms, mostly within one grey level.

    Pillow rounds after each axis, this function after both.
    """
    target = preprocessing.size
    sides = _resized_sides(images, preprocessing)
    scales = [side / jnp.float32(images.shape[axis]) for axis, side in enumerate(sides, 1)]
    margins = [(side - size) / 2 for side, size in zip(sides, target, strict=True)]
    offsets = [jnp.round(m) if preprocessing.rule == "torchvision" else jnp.floor(m) for m in margins]
    found = jax.image.scale_and_translate(
        images.astype(jnp.float32), (images.shape[0], *target, images.shape[3]), (1, 2),
        jnp.stack(scales), -jnp.stack(offsets), METHODS[preprocessing.method], antialias=True,
    )  # fmt: skip
    return jnp.round(found).clip(0, 255).astype(jnp.uint8)


def _resized_sides(images: Array, preprocessing: Preprocessing) -> list[Float[Array, ""]]:
    """Return height and width between the resize and the crop, rounded as in ops.resize_small."""
    height, width = (jnp.float32(images.shape[axis]) for axis in (1, 2))
    size = preprocessing.resized
    assert size is not None
    if not preprocessing.keep_ratio:
        return [jnp.float32(side) for side in (size if isinstance(size, tuple) else (size, size))]
    if not isinstance(size, int):
        ratio = jnp.minimum(height / size[0], width / size[1])
        return [jnp.round(height / ratio), jnp.round(width / ratio)]
    shorter = jnp.minimum(height, width)
    if preprocessing.rule == "big_vision":
        scale = jnp.float32(size) / shorter
        return [jnp.round(height * scale), jnp.round(width * scale)]
    # In integers, because a quotient in float32 may fall just below a whole number.
    h, w = (jnp.int32(images.shape[axis]) for axis in (1, 2))
    return [jnp.float32(size * side // jnp.minimum(h, w)) for side in (h, w)]
