"""Decode image files to the uint8 pixels that a viewer shows."""

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from jaxtyping import Float32, Integer, UInt8
from PIL import ExifTags, Image, ImageChops, ImageOps

from vit_jax.data.jpeg_parts import CONTEXT, cut_out, segments
from vit_jax.data.source import Draw, UnreadableImage, cut
from vit_jax.types import UserError

# Limit on the size in a file's header, before anything is allocated.
MAX_PIXELS = 89_478_485
# Longer sides are never needed, and resizing takes memory in proportion to them.
MAX_SIDE = 2**19
# Other Pillow plug-ins are excluded: some run external programs (EPS).
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# libjpeg warnings that do not affect pixels; strict decoding fails on them, Pillow does not.
HARMLESS_JPEG_WARNINGS = ("extraneous bytes", "JFIF revision", "Adobe color transform")
# Markers allowed before the scan of a baseline JPEG: tables, application data, comments.
PLAIN_SEGMENTS = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))
TILE_WIDTH, TILE_HEIGHT = 322, 323  # TIFF tags
BLOCK_ROWS = 256  # rows of deep samples converted at once
PNG_END = b"IEND\xaeB`\x82"

# Filters are global because `warnings.catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(data: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Decode the bytes of an image file.

    Grayscale is repeated to 3 channels, or colour converted to luma (ITU-R 601) for 1. Transparency is composited over
    white, 16-bit samples are scaled to 8, CMYK is converted, EXIF orientation is applied, and the first frame of an
    animation is used. Raises UnreadableImage for empty, truncated and corrupt files, non-images, and over MAX_PIXELS.
    """
    if channels not in (1, 3):
        raise UserError(f"channels={channels!r} is not supported; set 1 (gray) or 3 (RGB).")
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        pixels, exif = _decode_jpeg(data, channels) if data[:2] == b"\xff\xd8" else _decode_other(data, channels)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on damaged bytes
        raise UnreadableImage(_reason(error)) from error
    return _upright(pixels, exif_orientation(exif)) if exif else pixels


def decode_labels(data: bytes) -> Integer[np.ndarray, "h w"]:
    """Decode a mask to the numbers in its file: palette indices, samples of up to 16 bits, or 65536 r + 256 g + b.

    EXIF orientation is applied as for images. Raises UnreadableImage as `decode` does, and for other kinds of pixels.
    """

    def labels(image: Image.Image) -> np.ndarray:
        if image.mode in ("RGB", "RGBA"):
            return np.asarray(image)[:, :, :3].astype(np.int32) @ np.array([65536, 256, 1], np.int32)
        if image.mode == "LA":
            image = image.getchannel(0)
        if image.mode in ("1", "P", "L", "I") or image.mode.startswith("I;16"):
            return np.asarray(image) if image.mode != "1" else np.asarray(image).astype(np.uint8)
        raise UnreadableImage(f"a mask of mode {image.mode}, expected a palette, grey levels or RGB")

    return _decoded_samples(data, labels)


def decode_numbers(data: bytes) -> Float32[np.ndarray, "h w"]:
    """Decode a map with one number per pixel: a .npy file, or grey levels of 8, 16 or 32 bits, unscaled.

    Raises UnreadableImage.
    """
    if data[:6] == b"\x93NUMPY":
        try:
            found = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UnreadableImage(_reason(error)) from error
        if found.ndim != 2 or found.dtype.kind not in "iuf":
            raise UnreadableImage(f"an array of shape {found.shape} and dtype {found.dtype}, expected numbers [h, w]")
        check_size(*found.shape)
        return found.astype(np.float32)

    def numbers(image: Image.Image) -> np.ndarray:
        if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
            return np.asarray(image, np.float32)
        raise UnreadableImage(f"pixels of mode {image.mode}, expected one number each")

    return _decoded_samples(data, numbers)


def _decoded_samples(data: bytes, samples: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Open a file and return its samples unchanged, in upright orientation."""
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        with _opened(data) as file:
            file.load()
            exif = _exif(file)
            pixels = samples(file)
    except UnreadableImage:
        raise
    except Exception as error:  # see decode
        raise UnreadableImage(_reason(error)) from error
    return _upright(pixels[:, :, None], exif_orientation(exif))[:, :, 0] if exif else pixels


def size_of(data: bytes) -> tuple[int, int]:
    """Return the height and width of an upright image from its header; raises UnreadableImage."""
    try:
        with _opened(data) as file:
            exif = _exif(file)
            turned = exif_orientation(exif) >= 5 if exif else False
            return (file.width, file.height) if turned else (file.height, file.width)
    except UnreadableImage:
        raise
    except Exception as error:  # see decode
        raise UnreadableImage(_reason(error)) from error


def decode_part(data: bytes, channels: int, draw: Draw) -> UInt8[np.ndarray, "h w c"]:
    """Decode a crop, bit for bit equal to `decode` in the box that `draw` returns for the image's size.

    Upright baseline JPEG files are decoded only down to the bottom of the box, or only around it if they were made for
    that (see jpeg_parts), and not checked for damage: call `decode` once first. Other files are decoded completely.
    Raises UnreadableImage if the file cannot be decoded.
    """
    at = _plain_frame(data)
    if at is None:
        image = decode(data, channels)
        return cut(image, draw(image.shape[0], image.shape[1]))
    height, width = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
    check_size(height, width)
    box = draw(height, width)
    if (part := cut_out(data, box)) is not None:
        with contextlib.suppress(ValueError):
            return cut(_unchecked(part[0], channels), part[1])
    return cut(_decode_rows(data, channels, at, min(height, box[3] + CONTEXT)), box)


def is_made_for_parts(data: bytes) -> bool:
    """Return whether `decode_part` decodes only the surroundings of a box of this file."""
    return _plain_frame(data) is not None and cut_out(data, (0, 0, 1, 1)) is not None


def _unchecked(data: bytes, channels: int) -> np.ndarray:
    """Decode a baseline JPEG file; raises ValueError only if nothing can be decoded."""
    target = "RGB" if channels == 3 else "GRAY"
    return simplejpeg.decode_jpeg(data, target, fastdct=False, fastupsample=False, strict=False)


def _decode_rows(data: bytes, channels: int, at: int, rows: int) -> np.ndarray:
    """Decode at least the top `rows` by writing a smaller height into the header; the decoder ignores the rest."""
    shortened = b"".join((data[:at], rows.to_bytes(2, "big"), data[at + 2 :]))
    try:
        return _unchecked(shortened, channels)
    except ValueError:
        return decode(data, channels)


def _plain_frame(data: bytes) -> int | None:
    """Return the offset of the height in a JPEG file that `_decode_rows` can shorten, else None.

    Such a file is upright and has one frame of 8-bit gray or YCbCr samples, Huffman coded in a single scan.
    """
    frame = None
    for marker, at, segment in segments(data) if data[:2] == b"\xff\xd8" else ():
        if marker in (0xC0, 0xC1):
            frame = at if len(segment) >= 6 else None
        elif marker == 0xDA:
            has_one_scan = (
                frame is not None and data[frame + 9] in (1, 3) and segment[:1] == data[frame + 9 : frame + 10]
            )
            return frame + 5 if frame is not None and has_one_scan and any(data[frame + 5 : frame + 7]) else None
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            if exif_orientation(segment[6:]) != 1:
                return None
        elif marker not in PLAIN_SEGMENTS:
            return None
    return None


def from_picture(image: Image.Image, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Convert an opened image to the pixels that `decode` returns for its file."""
    return np.ascontiguousarray(_from_pillow(ImageOps.exif_transpose(image), channels))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is"
    # A decoder that fails on a damaged header gives no readable message: KeyError(-1), an index error, an assertion.
    is_sentence = " " in str(error) and not isinstance(error, LookupError)
    return str(error) if is_sentence else f"the file is damaged ({type(error).__name__} in the decoder)"


def check_size(height: int, width: int) -> None:
    """Raise UnreadableImage if an image, or the size it is resized to, has too many pixels."""
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels is more than the {MAX_PIXELS} allowed")
    if max(height, width) > MAX_SIDE:
        raise UnreadableImage(f"{width} x {height} pixels has a side of more than the {MAX_SIDE} allowed")


def _decode_jpeg(data: bytes, channels: int) -> tuple[np.ndarray, bytes]:
    """Decode with libjpeg-turbo, which is about three times as fast as Pillow and strict about damaged data."""
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    check_size(height, width)
    found = [(marker, segment) for marker, _, segment in segments(data)]
    exif = next((s[6:] for marker, s in found if marker == 0xE1 and s.startswith(b"Exif\0\0")), b"")
    adobe = any(marker == 0xEE and s.startswith(b"Adobe") for marker, s in found)
    inks = colorspace in ("CMYK", "YCCK")
    target = "CMYK" if inks else "RGB" if channels == 3 else "GRAY"
    try:
        pixels = simplejpeg.decode_jpeg(data, target, fastdct=False, fastupsample=False, strict=True)
    except ValueError as error:
        if any(warning in str(error) for warning in HARMLESS_JPEG_WARNINGS):
            return _decode_other(data, channels)[0], exif
        raise
    if inks:
        image = Image.fromarray(255 - pixels if adobe else pixels, "CMYK")  # Adobe stores inks inverted
        pixels = _from_pillow(image, channels)
    return pixels, exif


def _decode_other(data: bytes, channels: int) -> tuple[np.ndarray, bytes]:
    with _opened(data) as file:
        file.load()
        exif = _exif(file)
        # Pillow assumes that every CMYK JPEG is inverted, but only Adobe's are.
        plain_inks = file.mode == "CMYK" and file.format == "JPEG" and "adobe" not in file.info
        return _from_pillow(ImageChops.invert(file) if plain_inks else file, channels), exif


def _opened(data: bytes) -> Image.Image:
    """Open an image file without decoding its pixels, after checking its size."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and PNG_END not in data:  # Pillow accepts a PNG without its last chunk
        raise UnreadableImage("the PNG file is truncated")
    file = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    check_size(file.height, file.width)
    if file.format == "TIFF":  # a tile may be larger than the image, and is decoded completely
        check_size(*(int(file.tag_v2.get(tag, 1)) for tag in (TILE_HEIGHT, TILE_WIDTH)))  # type: ignore[attr-defined]
    return file


def _exif(file: Image.Image) -> bytes:
    return file.info.get("exif", b"").removeprefix(b"Exif\0\0")


def _from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    """Convert an image of any mode to uint8 [h, w, channels]."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels == 1 or image.mode in ("1", "L"):
        gray = np.asarray(image.convert("L"))[:, :, None]
        return np.repeat(gray, channels, axis=2)
    return np.array(image.convert("RGB"))


def _to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Round deep gray samples to uint8: integers span 0..65535; floats 0..1, or 0..255 if any exceeds 1."""
    integers = np.issubdtype(samples.dtype, np.integer)
    rounded = np.empty(samples.shape, np.uint8)
    # In blocks, because the intermediate arrays would take several times the memory of the image.
    blocks = [slice(row, row + BLOCK_ROWS) for row in range(0, len(samples), BLOCK_ROWS)]
    finite = (np.nan_to_num(samples[rows], posinf=0, neginf=0) for rows in blocks if not integers)
    scale = 255 if all(block.max() <= 1 for block in finite) else 1
    for rows in blocks:
        if integers:
            rounded[rows] = (samples[rows].clip(0, 65535).astype(np.uint32) + 128) // 257
        else:
            block = np.nan_to_num(samples[rows], posinf=0, neginf=0)
            rounded[rows] = np.rint(block * scale).clip(0, 255)
    return rounded


def exif_orientation(exif: bytes) -> int:
    """Return the orientation tag (1..8) of an EXIF block, 1 if it is absent or damaged."""
    try:
        block = Image.Exif()
        block.load(exif)
        orientation = int(block[ExifTags.Base.Orientation])
    except Exception:  # absent, or a damaged block, for which Pillow raises many types
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: transpose 5..8, then flip rows and columns."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
