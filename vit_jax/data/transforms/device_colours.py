"""Randomly change the colours of uint8 images [b, h, w, c], c = 1 or 3, in the compiled step; see device_ops.py.

Each change reproduces Pillow's arithmetic in whole grey levels, so that it agrees with the host for the same draw.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.data.transforms import augment
from vit_jax.types import ByteImages, Rng, UserError

# Images with whole numbers from 0 to 255.
Levels = Float[Array, "h w c"]
Change = Callable[[Levels, Array], Levels]


class OnImages:
    """A change of image colours that does not move pixels."""

    def __init__(self, op: Callable[[Rng, Array], Array]):
        self._op = op

    def __call__(self, rng: Rng, images: ByteImages) -> ByteImages:
        if images.shape[3] not in (1, 3):
            raise UserError(
                f"Found images of {images.shape[3]} channels, expected 1 (grey) or 3 (RGB) to change their colours; remove "
                "such operations from the preprocessing."
            )
        return self._op(rng, images)


def luma(image: Levels) -> Float[Array, "h w 1"]:
    """Return the grey levels of an image (ITU-R 601-2)."""
    if image.shape[2] == 1:
        return image
    weights = jnp.array([19595, 38470, 7471], jnp.int32)  # in 2^-16
    sums = (image.astype(jnp.int32) * weights.reshape(1, 1, 3)).sum(axis=2, keepdims=True)
    return ((sums + 32768) >> 16).astype(jnp.float32)


def blend(image: Levels, other: Float[Array, "..."], factor: Float[Array, ""]) -> Levels:
    """Return other + factor * (image - other), clipped and rounded down to whole levels."""
    return jnp.floor(jnp.clip(other + factor * (image - other), 0.0, 255.0))


def brightness(image: Levels, factor: Float[Array, ""]) -> Levels:
    """Blend with black."""
    return blend(image, jnp.zeros((1, 1, 1)), factor)


def contrast(image: Levels, factor: Float[Array, ""]) -> Levels:
    """Blend with the mean of the grey image."""
    return blend(image, jnp.floor(luma(image).mean() + 0.5).reshape(1, 1, 1), factor)


def saturation(image: Levels, factor: Float[Array, ""]) -> Levels:
    """Blend with the grey image."""
    return blend(image, luma(image), factor)


def shift_hue(image: Levels, turn: Float[Array, ""]) -> Levels:
    """Shift the hue by a fraction of the circle, in steps of 1/255; grey images are unchanged."""
    if image.shape[2] == 1:
        return image
    red, green, blue = (image[:, :, i] for i in range(3))
    value, chroma = image.max(axis=2), image.max(axis=2) - image.min(axis=2)
    safe = jnp.maximum(chroma, 1.0)
    far_red, far_green, far_blue = ((value - x) / safe for x in (red, green, blue))
    sector = jnp.where(
        red == value,
        far_blue - far_green,
        jnp.where(green == value, 2.0 + far_red - far_blue, 4.0 + far_green - far_red),
    )
    hue = jnp.where(chroma > 0, jnp.floor(jnp.mod(sector / 6.0 + 1.0, 1.0) * 255.0), 0.0)
    strength = jnp.floor(chroma / jnp.maximum(value, 1.0) * 255.0) / 255.0
    turned = jnp.mod(hue + jnp.trunc(turn * 255.0), 256.0) * 6.0 / 255.0
    whole = jnp.floor(turned)
    part = turned - whole
    low, falling, rising = (jnp.round(value * (1.0 - strength * x)) for x in (jnp.ones_like(part), part, 1.0 - part))
    sectors = [
        (value, rising, low), (falling, value, low), (low, value, rising),
        (low, falling, value), (rising, low, value), (value, low, falling),
    ]  # fmt: skip
    colours = jnp.stack([jnp.stack(sector, axis=2) for sector in sectors])
    return jnp.take_along_axis(colours, jnp.mod(whole, 6.0).astype(jnp.int32)[None, :, :, None], axis=0)[0]


def _each(change: Change, images: ByteImages, values: Float[Array, " b"]) -> ByteImages:
    return jax.vmap(change)(images.astype(jnp.float32), values).astype(images.dtype)


def color_jitter(
    brightness: float, contrast: float | None = None, saturation: float | None = None, hue: float = 0.0
) -> OnImages:
    """Multiply brightness, contrast and saturation by uniform factors and shift the hue, in random order, as on the host."""
    augment.color_jitter(brightness, contrast, saturation, hue)  # checks its arguments
    factors = [brightness, *(brightness if x is None else x for x in (contrast, saturation))]
    ranges = [(change, max(0.0, 1 - x), 1 + x) for change, x in zip(TONES, factors, strict=False) if x]
    ranges += [(shift_hue, -hue, hue)] if hue else []
    changes = [change for change, *_ in ranges]

    def jitter(image: Levels, order: Array, values: Float[Array, " n"]) -> Levels:
        for i in range(len(changes)):
            image = jax.lax.switch(order[i], changes, image, values[order[i]])
        return image

    def op(rng: Rng, images: ByteImages) -> ByteImages:
        of_order, of_values = jax.random.split(rng)
        low, high = (jnp.array([bounds[i] for bounds in ranges], jnp.float32)[None] for i in (1, 2))
        shape = (len(images), len(changes))
        orders = jax.random.permutation(
            of_order, jnp.tile(jnp.arange(shape[1])[None], (shape[0], 1)), axis=1, independent=True
        )
        values = low + (high - low) * jax.random.uniform(of_values, shape)
        return jax.vmap(jitter)(images.astype(jnp.float32), orders, values).astype(images.dtype)

    return OnImages(op if changes else lambda _, images: images)


def grayscale(prob: float = 0.2) -> OnImages:
    """Convert to grey, keeping the channels, with probability `prob`."""
    augment.grayscale(prob)  # checks its argument

    def op(rng: Rng, images: ByteImages) -> ByteImages:
        chosen = jax.random.bernoulli(rng, prob, (len(images), 1, 1, 1))
        return jnp.where(chosen, jax.vmap(luma)(images.astype(jnp.float32)).astype(images.dtype), images)

    return OnImages(op)


def gaussian_blur(radius_min: float = 0.1, radius_max: float = 2.0) -> OnImages:
    """Blur with a standard deviation in pixels uniform in [radius_min, radius_max]; edge pixels are repeated outside.

    The host's Pillow approximates the Gaussian by three box filters.
    """
    augment.gaussian_blur(radius_min, radius_max)  # checks its arguments

    def blurred(image: Levels, radius: Float[Array, ""]) -> Levels:
        rows, columns = (_smoothing(side, radius, 4 * radius_max) for side in image.shape[:2])
        mixed = jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=jax.lax.Precision.HIGHEST)
        return jnp.clip(jnp.round(mixed), 0.0, 255.0)

    def op(rng: Rng, images: ByteImages) -> ByteImages:
        radii = jax.random.uniform(rng, (len(images),), minval=radius_min, maxval=radius_max)
        return _each(blurred, images, radii)

    return OnImages(op)


def _smoothing(side: int, radius: Float[Array, ""], reach: float) -> Float[Array, "side side"]:
    """Return the weights of a Gaussian for each pixel of a side; pixels outside repeat the edge."""
    most = int(reach) + 1
    at = jnp.arange(-most, side + most)
    distance = (at[None] - jnp.arange(side)[:, None]) / jnp.maximum(radius, 1e-3)
    weights = jnp.exp(-0.5 * jnp.square(distance))
    weights = weights / weights.sum(axis=1, keepdims=True)
    inside = weights[:, most : most + side]
    inside = inside.at[:, 0].add(weights[:, :most].sum(axis=1))
    return inside.at[:, -1].add(weights[:, most + side :].sum(axis=1))


def solarize(threshold: int = 128) -> OnImages:
    """Invert values that are at least the threshold."""
    return OnImages(lambda _, images: jnp.where(images >= threshold, 255 - images, images))


TONES: tuple[Change, ...] = (brightness, contrast, saturation)
