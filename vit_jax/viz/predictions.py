"""Predictions of a classifier as a sheet of images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An image [h, w, c] with its true and predicted class and the probability of the latter."""

    image: UInt8[np.ndarray, "h w c"]
    truth: str
    predicted: str
    prob: float


def draw_predictions(predictions: Sequence[Prediction], title: str, path: Path, columns: int = 8) -> None:
    """A sheet of images, each under its predicted (and, where that is wrong, its true) label, into a PNG file."""
    rows = max(1, -(-len(predictions) // columns))
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, item in zip(axes, predictions, strict=False):
        right = item.predicted == item.truth
        image = item.image[..., 0] if item.image.shape[2] == 1 else item.image[..., :3]
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        text = f"{_short(item.predicted)} {item.prob:.0%}" + ("" if right else f"\nis {_short(item.truth)}")
        axis.set_title(text, fontsize=9, color="black" if right else "crimson")
    figure.savefig(path, dpi=110)


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
