"""Draw images with captions as a sheet, such as predictions of a classifier."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from vit_jax.printable import cut, picture
from vit_jax.viz.figure import save

CELL = (1.6, 1.9)  # width and height of an image with its label, in inches
SIDE = 1.4  # the longer side of an image


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An image with its true class, its predicted class and the probability of the prediction."""

    image: UInt8[np.ndarray, "h w c"]
    truth: str
    predicted: str
    prob: float


@dataclasses.dataclass(frozen=True)
class Caption:
    """An image with one or two lines of text above it."""

    image: UInt8[np.ndarray, "h w c"]
    text: str
    color: str = "black"


def draw_predictions(predictions: Sequence[Prediction], title: str, path: Path) -> None:
    """Draw images into a PNG file, each with its predicted label and, if that is wrong, its true label."""
    pictures = []
    for item in predictions:
        right = item.predicted == item.truth
        text = f"{cut(item.predicted, 14)} {item.prob:.0%}" + ("" if right else f"\nis {cut(item.truth, 14)}")
        pictures.append(Caption(item.image, text, "black" if right else "crimson"))
    draw_captioned(pictures, title, path)


def draw_captioned(pictures: Sequence[Caption], title: str, path: Path, columns: int = 8) -> None:
    """Draw images with their captions as a sheet into a PNG file."""
    rows = max(1, -(-len(pictures) // columns))
    width, height = CELL[0] * columns, CELL[1] * rows + 0.6
    figure = Figure(figsize=(width, height))
    figure.suptitle(picture(cut(title, 120)), y=1 - 0.15 / height, va="top")
    # A single axes in inches: one axes per image would take most of the time of a short run.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    for number, item in enumerate(pictures):
        row, column = divmod(number, columns)
        image = item.image[..., 0] if item.image.shape[2] < 3 else item.image[..., :3]
        tall, wide = (SIDE * size / max(image.shape[:2]) for size in image.shape[:2])
        middle, bottom = CELL[0] * (column + 0.5), CELL[1] * (rows - 1 - row) + 0.05
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom + tall)
        axis.imshow(image, extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=255)
        text = "\n".join(picture(cut(part, 20)) for part in item.text.split("\n")[:2])
        axis.text(middle, bottom + tall + 0.04, text, fontsize=9, color=item.color, ha="center", va="bottom")
    save(figure, path)
