"""The preprocessing operations: each maker takes literals and gives a function of (image, generator).

Images are uint8 [h, w, c]. Resizing is antialiased: Pillow's, except that of random crops (see `RandomCrop`).
"""

import functools
import threading
from collections.abc import Callable
from typing import Literal

import numpy as np
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from jaxtyping import Int, UInt8
from PIL import Image

from vit_jax.data.decode import MAX_PIXELS
from vit_jax.data.source import Box, cut
from vit_jax.types import UserError

Op = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Size = int | tuple[int, int]
Method = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

# Pillow's filters by their names there.
FILTERS = {
    "box": FilterType.box,
    "bilinear": FilterType.bilinear,
    "bicubic": FilterType.catmull_rom,
    "lanczos": FilterType.lanczos3,
}
PIXELS = {1: PixelType.U8, 2: PixelType.U8x2, 3: PixelType.U8x3, 4: PixelType.U8x4}
_local = threading.local()


def _height_width(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, found {size}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"size must be at most {MAX_PIXELS} pixels in all, found {size}")
    return height, width


def _resize(image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], method: Method) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Resamples the image to (height, width)."""
    if image.shape[:2] == size:
        return image
    resample = Image.Resampling[method.upper()]
    target = size[::-1]
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(target, resample))
    # Channel by channel: Pillow has no mode for other counts, and takes a fourth channel for opacity.
    planes = [Image.fromarray(np.ascontiguousarray(image[:, :, i])) for i in range(image.shape[2])]
    return np.stack([np.asarray(plane.resize(target, resample)) for plane in planes], axis=2)


def _resize_quickly(
    image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], method: Method
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """What `_resize` does, four times as fast, by integer SIMD whose result is the same on every processor.

    Seldom more than one grey level from Pillow's bilinear result; on average 0.2 from any.
    """
    if image.shape[:2] == size or method not in FILTERS:
        return _resize(image, size, method)
    height, width, channels = image.shape
    if channels not in PIXELS:
        return np.concatenate([_resize_quickly(image[:, :, [i]], size, method) for i in range(channels)], axis=2)
    if not hasattr(_local, "resizer"):
        _local.resizer = Resizer()  # it keeps its buffers, so each thread needs its own
    target = ImageData(size[1], size[0], PIXELS[channels])
    options = ResizeOptions(resize_alg=ResizeAlg.convolution(FILTERS[method]), use_alpha=False)
    _local.resizer.resize(ImageData(width, height, PIXELS[channels], image.tobytes()), target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, channels)


def resize(size: Size, method: Method = "bilinear") -> Op:
    """Resizes to exactly `size`, whatever the aspect ratio."""
    target = _height_width(size)
    return lambda image, rng: _resize(image, target, method)


def resize_small(size: int, method: Method = "bilinear") -> Op:
    """Resizes so that the shorter side is `size`, keeping the aspect ratio to the nearest pixel."""
    _height_width(size)

    def op(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        height, width = image.shape[:2]
        scale = size / min(height, width)
        return _resize(image, (round(height * scale), round(width * scale)), method)

    return op


def central_crop(size: Size) -> Op:
    """Cuts the middle `size` pixels; where a margin is odd, the extra pixel is cut at the bottom or right."""
    height, width = _height_width(size)

    def op(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        if top < 0 or left < 0:
            raise UserError(
                f"Found an image of {image.shape[0]} x {image.shape[1]} pixels, expected at least {height} x {width} "
                f"for central_crop({size}): put resize_small before it."
            )
        return image[top : top + height, left : left + width]

    return op


def flip() -> Op:
    """Mirrors left and right with probability 1/2."""
    return lambda image, rng: image[:, ::-1] if rng.random() < 0.5 else image


def rotate(degrees: float) -> Op:
    """Turns by an angle uniform in [-degrees, degrees] about the centre; what comes into view is black."""

    def op(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        angle = rng.uniform(-degrees, degrees)
        planes = [Image.fromarray(np.ascontiguousarray(image[:, :, i])) for i in range(image.shape[2])]
        return np.stack([np.asarray(plane.rotate(angle, Image.Resampling.BILINEAR)) for plane in planes], axis=2)

    return op


def pad_crop(size: Size, padding: int, mode: Literal["reflect", "zero"] = "reflect") -> Op:
    """Pads every side by `padding` pixels and cuts a random window of `size` (arXiv:1512.03385, section 4.2)."""
    height, width = _height_width(size)
    if padding < 0:
        raise ValueError(f"padding must be at least 0, found {padding}")

    def op(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        free_rows, free_columns = image.shape[0] + 2 * padding - height, image.shape[1] + 2 * padding - width
        if free_rows < 0 or free_columns < 0:
            raise UserError(
                f"Found an image of {image.shape[0]} x {image.shape[1]} pixels, too small for pad_crop({size}, "
                f"{padding}): put resize before it or pad more."
            )
        top, left = int(rng.random() * (free_rows + 1)), int(rng.random() * (free_columns + 1))
        rows = padded_positions(image.shape[0], padding)[top : top + height]
        columns = padded_positions(image.shape[1], padding)[left : left + width]
        # Gathering by position is several times faster than np.pad on small images.
        cut = image.take(rows, axis=0).take(columns, axis=1)
        if mode == "zero":
            cut[(top + np.arange(height) < padding) | (top + np.arange(height) >= padding + image.shape[0])] = 0
            cut[:, (left + np.arange(width) < padding) | (left + np.arange(width) >= padding + image.shape[1])] = 0
        return cut

    return op


def simple_crop(size: int) -> Op:
    """Simple random crop: the shorter side to `size`, bicubic, padded by 4 and cut (arXiv:2204.07118, section 3.2)."""
    shrink, cut = resize_small(size, "bicubic"), pad_crop(size, 4)
    return lambda image, rng: cut(shrink(image, rng), rng)


@functools.lru_cache(maxsize=256)
def padded_positions(length: int, padding: int) -> Int[np.ndarray, "padded"]:
    """The pixel that each position of a side padded by reflection shows; the edge pixel is not repeated."""
    period = max(2 * (length - 1), 1)
    position = np.arange(-padding, length + padding) % period
    return np.minimum(position, period - position) if length > 1 else np.zeros_like(position)


class RandomCrop:
    """A random part of the image, resized: what `inception_crop` describes.

    `box` draws the part and `resized` makes the result of it, so that a decoder may make that part alone. Resampling
    sees nothing outside the part.
    """

    def __init__(self, size: tuple[int, int], area: tuple[float, float], ratio: float, method: Method):
        self._size, self._area, self._ratio, self._method = size, area, ratio, method

    def __call__(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        return self.resized(cut(image, self.box(image.shape[0], image.shape[1], rng)))

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """The part of an image of that many pixels."""
        for _ in range(100):
            pixels = height * width * rng.uniform(*self._area)
            aspect = self._ratio ** rng.uniform(-1, 1)
            box_width, box_height = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
            if 1 <= box_width <= width and 1 <= box_height <= height:
                left, top = int(rng.integers(width - box_width + 1)), int(rng.integers(height - box_height + 1))
                return left, top, left + box_width, top + box_height
        return 0, 0, width, height

    def resized(self, part: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
        """The result for the part of an image that `box` gave."""
        return _resize_quickly(part, self._size, self._method)


def inception_crop(
    size: Size,
    area_min: float = 0.05,
    area_max: float = 1.0,
    ratio: float = 4 / 3,
    method: Method = "bilinear",
) -> RandomCrop:
    """Cuts a random part of the image and resizes it to `size` (arXiv:1409.4842, section 6).

    Its share of the area is uniform in [area_min, area_max], its width / height log-uniform in [1 / ratio, ratio]; a
    draw that does not fit is repeated, up to 100 times, then the whole image is used, as TensorFlow's
    sample_distorted_bounding_box does.
    """
    target = _height_width(size)
    if not 0 < area_min <= area_max <= 1:
        raise ValueError(f"expected 0 < area_min <= area_max <= 1, found {area_min} and {area_max}")
    if ratio < 1:
        raise ValueError(f"expected ratio >= 1, found {ratio}")
    return RandomCrop(target, (area_min, area_max), ratio, method)
