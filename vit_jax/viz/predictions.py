"""Predictions of a classifier as a grid of images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from vit_jax.printable import line, picture
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


def draw_predictions(predictions: Sequence[Prediction], title: str, path: Path, columns: int = 8) -> None:
    """Draw images into a PNG file, each with its predicted label and, if that is wrong, its true label."""
    rows = max(1, -(-len(predictions) // columns))
    width, height = CELL[0] * columns, CELL[1] * rows + 0.6
    figure = Figure(figsize=(width, height))
    figure.suptitle(picture(title), y=1 - 0.15 / height, va="top")
    # A single axes in inches: one axes per image would take most of the time of a short run.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    for number, item in enumerate(predictions):
        row, column = divmod(number, columns)
        image = item.image[..., 0] if item.image.shape[2] < 3 else item.image[..., :3]
        tall, wide = (SIDE * size / max(image.shape[:2]) for size in image.shape[:2])
        middle, bottom = CELL[0] * (column + 0.5), CELL[1] * (rows - 1 - row) + 0.05
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom + tall)
        axis.imshow(image, extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=255)
        right = item.predicted == item.truth
        text = f"{_short(item.predicted)} {item.prob:.0%}" + ("" if right else f"\nis {_short(item.truth)}")
        color = "black" if right else "crimson"
        axis.text(middle, bottom + tall + 0.04, text, fontsize=9, color=color, ha="center", va="bottom")
    save(figure, path)


def _short(name: str) -> str:
    name = line(name)
    return picture(name if len(name) <= 14 else name[:13] + "…")
