"""Apply random operations to a whole batch inside the compiled step, for data that stays on the devices.

Each maker takes the arguments of the host operation of the same name and returns a function of (key, images uint8 [b,
h, w, c]). The draws differ from the host's but have the same distributions. `transformed` applies them to the fields of
a batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from vit_jax.data import source
from vit_jax.data.source import Fields
from vit_jax.data.transforms import device_colours, ops
from vit_jax.data.transforms.device_colours import OnImages
from vit_jax.data.transforms.ops import Size, padded_positions
from vit_jax.data.transforms.preprocess import parse_steps, split_spec
from vit_jax.data.transforms.views import views_of
from vit_jax.types import ByteImages, Rng, UserError

Batch = Mapping[str, jax.Array]


class Geometric:
    """A geometric map, drawn once for all images and segments of an example; segments are not interpolated."""

    def __init__(self, op: Callable[[Rng, Array, bool], Array]):
        self._op = op

    def __call__(self, rng: Rng, images: ByteImages, nearest: bool = False) -> UInt8[Array, "b h2 w2 c"]:
        return self._op(rng, images, nearest)


class Views:
    """Replace `image` [b, h, w, c] by `views` [b, count, h, w, c] and, if there are small crops, `crops`."""

    def __init__(self, parts: Mapping[str, Sequence[Sequence[Any]]]):
        self._parts = parts

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of the result; stacked views are no longer spatial."""
        rest = {key: field for key, field in fields.items() if key != "image"}
        return rest | {key: source.Field() for key, parts in self._parts.items() if parts}

    def __call__(self, rng: Rng, batch: Batch) -> Batch:
        made: dict[str, jax.Array] = {}
        for key, parts in self._parts.items():
            rng, *keys = jax.random.split(rng, 1 + len(parts))
            drawn = [on_images(steps, k, batch["image"]) for steps, k in zip(parts, keys, strict=True)]
            made |= {key: jnp.stack(drawn, axis=1)} if drawn else {}
        return {key: x for key, x in batch.items() if key != "image"} | made


class Maybe(OnImages):
    """Apply operations to each image with a probability."""

    def __init__(self, prob: float, steps: Sequence[Any]):
        def op(rng: Rng, images: ByteImages) -> ByteImages:
            chosen = jax.random.bernoulli(jax.random.fold_in(rng, 0), prob, (len(images), 1, 1, 1))
            return jnp.where(chosen, on_images(steps, jax.random.fold_in(rng, 1), images), images)

        super().__init__(op)


def on_images(steps: Sequence[Any], rng: Rng, images: ByteImages) -> UInt8[Array, "b h2 w2 c"]:
    """Apply operations to images only."""
    for index, step in enumerate(steps):
        images = step(jax.random.fold_in(rng, index), images)
    return images


def transformed(steps: Sequence[Any], rng: Rng, batch: Batch, fields: Fields) -> dict[str, jax.Array]:
    """Apply operations to a batch of examples with these fields.

    A geometric operation maps all images and segments with one draw, others map only images; Views replaces keys.
    """
    for index, step in enumerate(steps):
        key, result = jax.random.fold_in(rng, index), dict(batch)
        if isinstance(step, Views):
            batch, fields = step(key, batch), step.fields(fields)
            continue
        for name, field in fields.items():
            if isinstance(field, source.Image) and name in batch:
                result[name] = step(key, batch[name])
            elif isinstance(field, source.Segments) and name in batch and isinstance(step, Geometric):
                result[name] = step(key, batch[name][..., None], nearest=True)[..., 0]
            elif isinstance(field, source.Boxes | source.PixelNumbers) and isinstance(step, Geometric):
                raise UserError(
                    f"data.resident moves images and their segments on the devices, not {name!r}; leave data.resident unset."
                )
        batch = result
    return dict(batch)


def flip() -> Geometric:
    """Mirror left and right with probability 1/2."""

    def op(rng: Rng, images: ByteImages, nearest: bool) -> ByteImages:
        mirrored = jax.random.bernoulli(rng, shape=(len(images), 1, 1, 1))
        return jnp.where(mirrored, images[:, :, ::-1], images)

    return Geometric(op)


def pad_crop(size: Size, padding: int, mode: Literal["reflect", "zero"] = "reflect") -> Geometric:
    """Pad every side by `padding` pixels and cut a random window of `size` (arXiv:1512.03385, section 4.2)."""
    window = (size, size) if isinstance(size, int) else size

    def op(rng: Rng, images: ByteImages, nearest: bool) -> UInt8[Array, "b h2 w2 c"]:
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
            outside = source.IGNORED if nearest else 0
            return jnp.where(seen, image, outside).astype(image.dtype) if mode == "zero" else image

        return jax.vmap(cut)(images, starts)

    return Geometric(op)


def random_resized_crop(
    size: Size,
    area_min: float = 0.08,
    area_max: float = 1.0,
    ratio: float | tuple[float, float] = (3 / 4, 4 / 3),
    method: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> Geometric:
    """Crop a random part of the image and resize it to `size`, with the host's distribution and antialiasing.

    Resampling multiplies by one matrix per side, so the result is within a grey level of the host's, which rounds
    between the sides.
    """
    ops.random_resized_crop(size, area_min, area_max, ratio, method)  # checks its arguments
    window = (size, size) if isinstance(size, int) else size
    ratios = ratio if isinstance(ratio, tuple) else (1 / ratio, ratio)

    def op(rng: Rng, images: ByteImages, nearest: bool) -> UInt8[Array, "b h2 w2 c"]:
        boxes = crop_boxes(rng, len(images), (images.shape[1], images.shape[2]), (area_min, area_max), ratios)
        return resized_parts(images, boxes, window, "nearest" if nearest else method)

    return Geometric(op)


def crop_boxes(
    rng: Rng, count: int, sides: tuple[int, int], area: tuple[float, float], ratios: tuple[float, float]
) -> Int[Array, "count 4"]:
    """Draw boxes (left, top, right, bottom) like ops.random_resized_crop: the first of ten that fits, or the middle."""
    height, width = sides
    of_area, of_aspect, of_left, of_top = jax.random.split(rng, 4)
    pixels = height * width * jax.random.uniform(of_area, (count, 10), minval=area[0], maxval=area[1])
    low, high = (math.log(x) for x in ratios)
    aspects = jnp.exp(jax.random.uniform(of_aspect, (count, 10), minval=low, maxval=high))
    columns, rows = (jnp.round(jnp.sqrt(x)).astype(jnp.int32) for x in (pixels * aspects, pixels / aspects))
    fits = (columns >= 1) & (columns <= width) & (rows >= 1) & (rows <= height)
    first = jnp.argmax(fits, axis=1)[:, None]
    columns, rows = (jnp.take_along_axis(x, first, axis=1)[:, 0] for x in (columns, rows))
    left = jax.random.randint(of_left, (count,), 0, jnp.maximum(width - columns, 0) + 1)
    top = jax.random.randint(of_top, (count,), 0, jnp.maximum(height - rows, 0) + 1)
    drawn = jnp.stack([left, top, left + columns, top + rows], axis=1)
    wide, tall = min(width, round(height * ratios[1])), min(height, round(width / ratios[0]))
    corner = ((width - wide) // 2, (height - tall) // 2)
    middle = jnp.array([[*corner, corner[0] + wide, corner[1] + tall]])
    return jnp.where(fits.any(axis=1)[:, None], drawn, middle)


def resized_parts(
    images: ByteImages, boxes: Int[Array, "b 4"], size: tuple[int, int], method: str
) -> UInt8[Array, "b h2 w2 c"]:
    """Resize the part of each image inside its box; resampling ignores everything outside."""
    of_rows, of_columns = (
        jax.vmap(lambda first, last, new=new, old=old: resampling(first, last, new, old, method))(
            boxes[:, i], boxes[:, i + 2]
        )
        for i, new, old in ((1, size[0], images.shape[1]), (0, size[1], images.shape[2]))
    )
    product = "bih,bhwc,bjw->bijc"
    mixed = jnp.einsum(product, of_rows, images.astype(jnp.float32), of_columns, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(jnp.round(mixed), 0, 255).astype(images.dtype)


def resampling(first: Int[Array, ""], last: Int[Array, ""], new: int, old: int, method: str) -> Float[Array, "new old"]:
    """Return Pillow's weights of the pixels from first to last, on a side of `old`, for each of `new` pixels."""
    scale = (last - first) / new
    centers = (first + (jnp.arange(new) + 0.5) * scale)[:, None]
    at = jnp.arange(old)[None]
    if method == "nearest":
        nearest = first + (2 * jnp.arange(new) + 1) * (last - first) // (2 * new)  # exactly
        return (at == nearest[:, None]).astype(jnp.float32)
    distance = jnp.abs(at + 0.5 - centers) / jnp.maximum(scale, 1.0)
    weights = {"bilinear": _triangle, "bicubic": _cubic}[method](distance)
    inside: Bool[Array, "1 old"] = (at >= first) & (at < last)
    weights = jnp.where(inside, weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return jnp.maximum(1.0 - x, 0.0)


def _cubic(x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Return the cubic convolution kernel with a = -0.5 at distances x (Keys 1981, equation 4)."""
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def maybe(prob: float, spec: str) -> Maybe:
    """Apply a spec such as 'color_jitter(0.4)' with probability `prob`; it must keep the size of the image."""
    if not 0 <= prob <= 1:
        raise ValueError(f"expected prob from 0 to 1, found {prob}")
    return Maybe(prob, _parse(spec))


def views(views: int, crops: int = 0, view: str = "", crop: str = "", last_view: str | None = None) -> Views:
    """Make `views` large and `crops` small views, each with its own spec, as on the host."""
    return Views(
        {key: [_parse(x) for x in specs] for key, specs in views_of(views, crops, view, crop, last_view).items()}
    )


def _parse(spec: str) -> list[Any]:
    table = {name: op for name, op in DEVICE_OPS.items() if op is not views}
    return parse_steps(spec, table, split_spec(spec))


DEVICE_OPS = {
    op.__name__: op
    for op in (
        *(flip, pad_crop, random_resized_crop, views, maybe),
        *(device_colours.color_jitter, device_colours.grayscale, device_colours.gaussian_blur, device_colours.solarize),
    )
}
