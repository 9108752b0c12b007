"""Resample images to another size."""

import threading
from typing import Literal

import numpy as np
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from jaxtyping import Shaped, UInt8
from PIL import Image

from vit_jax.data.decode import MAX_PIXELS, check_size

Size = int | tuple[int, int]
Method = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
# Filters by their Pillow names.
FILTERS = {
    "box": FilterType.box,
    "bilinear": FilterType.bilinear,
    "bicubic": FilterType.catmull_rom,
    "lanczos": FilterType.lanczos3,
}
PIXELS = {1: PixelType.U8, 2: PixelType.U8x2, 3: PixelType.U8x3, 4: PixelType.U8x4}
_local = threading.local()


def height_width(size: Size) -> tuple[int, int]:
    """Return (height, width) of a size; a single number is used for both."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, found {size}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"size must be at most {MAX_PIXELS} pixels in all, found {size}")
    return height, width


def resample(
    image: Shaped[np.ndarray, "h w c"], size: tuple[int, int], method: Method
) -> Shaped[np.ndarray, "h2 w2 c"]:
    """Resample the image to (height, width); raises UnreadableImage if that needs more pixels than allowed."""
    if image.shape[:2] == size:
        return image
    check_size(*size)
    check_size(image.shape[0], size[1])  # Pillow resizes the rows first
    resample = Image.Resampling[method.upper()]
    target = size[::-1]
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(target, resample))
    # Channel by channel: Pillow has no mode for other counts, and treats a fourth channel as opacity.
    planes = [Image.fromarray(np.ascontiguousarray(image[:, :, i])) for i in range(image.shape[2])]
    return np.stack([np.asarray(plane.resize(target, resample)) for plane in planes], axis=2)


def resample_fast(
    image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], method: Method
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Resample four times as fast as `resample`, using integer SIMD with the same result on every processor.

    The result rarely differs by more than one grey level from Pillow's bilinear one; 0.2 on average for all methods.
    """
    if image.shape[:2] == size or method not in FILTERS:
        return resample(image, size, method)
    height, width, channels = image.shape
    if channels not in PIXELS:
        return np.concatenate([resample_fast(image[:, :, [i]], size, method) for i in range(channels)], axis=2)
    if not hasattr(_local, "resizer"):
        _local.resizer = Resizer()  # it keeps buffers, so each thread needs its own
    target = ImageData(size[1], size[0], PIXELS[channels])
    options = ResizeOptions(resize_alg=ResizeAlg.convolution(FILTERS[method]), use_alpha=False)
    _local.resizer.resize(ImageData(width, height, PIXELS[channels], image.tobytes()), target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, channels)
