"""Draw predictions for pixels, and boxes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from vit_jax.printable import cut

Classes = UInt8[np.ndarray, "h w"]
Pixels = UInt8[np.ndarray, "h w c"]


def palette() -> UInt8[np.ndarray, "256 3"]:
    """Return the palette of Pascal VOC's masks: a number's bits, three at a time, become high bits of r, g and b."""
    numbers = np.arange(256)
    shifts = range(8)
    return np.stack(
        [sum(((numbers >> (3 * i + channel)) & 1) << (7 - i) for i in shifts) for channel in range(3)], axis=1
    ).astype(np.uint8)


def save_mask(classes: Classes, path: Path) -> None:
    """Write classes as a PNG with a palette, which mask readers read back as the same numbers."""
    image = Image.fromarray(classes, "L")
    image.putpalette(palette().tobytes())
    image.save(path)


def overlay(image: Pixels, classes: Classes, share: float = 0.5) -> UInt8[np.ndarray, "h w 3"]:
    """Blend the colours of its classes over an image; class 0, the background by convention, is left transparent."""
    colours = palette()[classes]
    mixed = image[..., :1].repeat(3, axis=2) if image.shape[2] < 3 else image[..., :3]
    mixed = np.where(classes[..., None] == 0, mixed, (1 - share) * mixed + share * colours)
    return mixed.round().astype(np.uint8)


def shaded(numbers: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Map numbers to viridis colours, from the smallest to the largest."""
    from matplotlib import colormaps

    low, high = float(numbers.min()), float(numbers.max())
    share = (numbers - low) / (high - low if high > low else 1.0)
    return (255 * colormaps["viridis"](share)[..., :3]).round().astype(np.uint8)


def draw_boxes(
    image: Pixels, boxes: Float[np.ndarray, "n 4"], labels: Sequence[int], captions: Sequence[str]
) -> Image.Image:
    """Draw boxes (left, top, right, bottom) on an image in the colours of their classes, with captions."""
    drawn = Image.fromarray(image[..., :3] if image.shape[2] >= 3 else image[..., 0]).convert("RGB")
    pen, colours = ImageDraw.Draw(drawn), palette()
    for box, label, caption in zip(boxes.tolist(), labels, captions, strict=True):
        colour = tuple(colours[1 + label % 255].tolist())
        left, top, right, bottom = box
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=2)
        pen.text((left + 3, top + 1), cut(caption, 30), fill=colour)
    return drawn
