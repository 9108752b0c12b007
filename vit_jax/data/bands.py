"""Read images with many channels or deep samples: TIFF stacks, multi-spectral and medical images, and .npy arrays."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from vit_jax.config.hints import cast, fits, hint_name
from vit_jax.data.decode import MAX_PIXELS, PILLOW_FORMATS, check_size
from vit_jax.data.images import ImageFile
from vit_jax.data.source import Encoded, UnreadableImage
from vit_jax.types import UserError

# The channel values that are mapped to 0 and to 255.
Range = tuple[float, float]
ENDINGS = (".tif", ".tiff", ".npy", ".png")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_bands(data: bytes, channels: int | None = None) -> Shaped[np.ndarray, "h w c"]:
    """Return the unscaled samples of an image file.

    A .npy array is [h, w] or [h, w, c]. A TIFF has one channel per page, or several samples per pixel; tifffile is
    needed for those that Pillow cannot read. channels: the expected number of channels, used to tell [c, h, w] from [h,
    w, c]. Raises UnreadableImage.
    """
    try:
        if data[:6] == b"\x93NUMPY":
            found = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            found = _tiff(data) if data[:4] in TIFF else _pages(data)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes
        raise UnreadableImage(f"the file is damaged or not supported ({type(error).__name__}: {error})") from error
    if found.ndim == 2:
        found = found[:, :, None]
    if found.ndim == 3 and channels is not None and found.shape[2] != channels and found.shape[0] == channels:
        found = np.moveaxis(found, 0, 2)
    if found.ndim != 3 or found.dtype.kind not in "iuf" or not found.size:
        raise UnreadableImage(
            f"an array of shape {found.shape} and dtype {found.dtype}, expected numbers [h, w, channels]"
        )
    check_size(found.shape[0], found.shape[1])
    if channels is not None and found.shape[2] != channels:
        raise UnreadableImage(f"{found.shape[2]} channels, expected {channels}, as many as `bands` of the source")
    return found


def _pages(data: bytes) -> np.ndarray:
    """Read the pages of an image file as channels, with Pillow."""
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as file:
        count = getattr(file, "n_frames", 1)
        if count * file.height * file.width > MAX_PIXELS:
            raise UnreadableImage(f"{count} pages of {file.width} x {file.height} pixels are more than allowed")
        pages = []
        for page in range(count):
            file.seek(page)
            pages.append(np.atleast_3d(np.asarray(file)))
    return np.concatenate(pages, axis=2)


def _tiff(data: bytes) -> np.ndarray:
    """Read a TIFF with tifffile if it is installed, else with Pillow."""
    try:
        import tifffile
    except ImportError:
        try:
            return _pages(data)
        except Image.UnidentifiedImageError:
            raise UnreadableImage(
                "a TIFF with several samples per pixel, which needs tifffile: pip install 'vit_jax[tiff]'"
            ) from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        if np.prod(series.shape, dtype=np.int64) > MAX_PIXELS:
            raise UnreadableImage(
                f"an array of shape {series.shape}, which is more than the {MAX_PIXELS} numbers allowed"
            )
        found = series.asarray()
        # Samples of a pixel, or pages, come first if they are not interleaved.
        first = series.axes[:1] in ("S", "C", "I", "Q", "Z") and found.ndim == 3 and series.axes[-1:] != "S"
        return np.moveaxis(found, 0, 2) if first else found


class Bands(Encoded):
    """An image file, each channel mapped to uint8 by its own range; NaN becomes 0."""

    def __init__(self, read: Callable[[], bytes], ranges: Sequence[Range]):
        self._read, self._ranges = read, tuple(ranges)

    def decode(self) -> UInt8[np.ndarray, "h w c"]:
        """See Encoded."""
        return to_bytes(read_bands(self._read(), len(self._ranges)), self._ranges)


def to_bytes(samples: Shaped[np.ndarray, "h w c"], ranges: Sequence[Range]) -> UInt8[np.ndarray, "h w c"]:
    """Map each channel linearly from its range to [0, 255], clipped and rounded."""
    low, high = (np.array([pair[i] for pair in ranges], np.float32) for i in (0, 1))
    share = (np.nan_to_num(samples.astype(np.float32)) - low) / (high - low)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


def check_ranges(ranges: Sequence[Range]) -> None:
    """Raise UserError if the range of a channel is empty."""
    wrong = [i for i, (low, high) in enumerate(ranges) if low >= high]
    if wrong or not ranges:
        raise UserError(
            f"Found bands={list(ranges)}, expected (low, high) with low below high for each channel: `vit preview --bands=FOLDER` "
            "prints them."
        )


def ranges_in(config: Mapping[str, Any]) -> tuple[Range, ...] | None:
    """Return the channel ranges in a model's training config; raises UserError if they are malformed."""
    found, hint = (config.get("data", {}).get("source") or {}).get("bands"), tuple[Range, ...] | None
    if not fits(found, hint):
        raise UserError(f"The model's config has {found!r} as data.source.bands; expected {hint_name(hint)}.")
    return cast(found, hint)


def image_file(read: Callable[[], bytes], channels: int, bands: Sequence[Range] | None) -> Encoded:
    """Return an image file with 1 or 3 channels of 8 bits, or, given `bands`, one with many or deep channels."""
    return ImageFile(read, channels) if bands is None else Bands(read, bands)
