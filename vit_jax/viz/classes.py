"""Write which classes a classifier confuses: predictions, confusion matrix, worst classes, most confident mistakes."""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.figure import Figure

from vit_jax.data.transforms.sequence import picture_of
from vit_jax.printable import csv_cell, cut, picture
from vit_jax.viz.figure import save
from vit_jax.viz.predictions import Prediction, draw_predictions

SHOWN = 48  # predictions in the sheet
MISTAKES = 1000  # in the table
CLASSES = 40  # in the figure of the confusion matrix


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Labels, predictions and their probabilities [n] of a classifier, and functions for the n-th image and name."""

    label: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    confidence: np.ndarray
    class_names: Sequence[str]
    image: Callable[[int], UInt8[np.ndarray, "h w c"]]
    name: Callable[[int], str]

    @classmethod
    def of(cls, rows: Mapping[str, np.ndarray], class_names: Sequence[str], data: Any) -> "Predictions":
        """Combine the rows of evals.classification with the images of its data."""
        index = rows["index"]
        return cls(
            rows["label"], rows["predicted"], rows["confidence"], class_names,
            image=lambda i: picture_of(data.example(int(index[i]))),
            name=lambda i: data.source.name(int(index[i])),
        )  # fmt: skip

    @property
    def wrong(self) -> np.ndarray:
        """Whether each prediction is a mistake."""
        return self.predicted != self.label

    @property
    def mistakes(self) -> np.ndarray:
        """The positions of the mistakes, most confident first."""
        wrong = np.flatnonzero(self.wrong)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]


def write_classes(found: Predictions, folder: Path) -> None:
    """Write predictions.png, confusion.png, classes.csv and mistakes.csv into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # Mistakes from the most confident down, then correct predictions from the least confident up.
    right = np.flatnonzero(~found.wrong)
    order = [*found.mistakes, *right[np.argsort(found.confidence[right], kind="stable")]][:SHOWN]
    names = found.class_names
    pictures = [
        Prediction(found.image(i), names[found.label[i]], names[found.predicted[i]], float(found.confidence[i]))
        for i in order
    ]
    count = len(found.mistakes)
    sheet = f"{count:,} of {len(found.label):,} images are misclassified"
    draw_predictions(pictures, sheet + (f"; the top {SHOWN}" if count > SHOWN else ""), folder / "predictions.png")
    draw_confusion(found, folder / "confusion.png")
    write_table(
        folder / "classes.csv",
        ("class", "images", "accuracy", "predicted", "most confused with", "times"),
        worst(found),
    )
    mistakes = [
        (found.name(i), names[found.label[i]], names[found.predicted[i]], f"{found.confidence[i]:.4f}")
        for i in found.mistakes[:MISTAKES]
    ]
    write_table(folder / "mistakes.csv", ("image", "class", "predicted", "probability"), mistakes)


def worst(found: Predictions) -> list[tuple[Any, ...]]:
    """Return (class, images, accuracy, times predicted, most frequent wrong prediction, its count), worst first."""
    size = len(found.class_names)
    images, right = (np.bincount(found.label[of], minlength=size) for of in (slice(None), ~found.wrong))
    predicted = np.bincount(found.predicted, minlength=size)
    confused: dict[int, tuple[int, int]] = {}
    pairs = np.stack([found.label, found.predicted], axis=1)[found.wrong]
    for (true, taken), times in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True):
        if times > confused.get(int(true), (0, 0))[1]:
            confused[int(true)] = (int(taken), int(times))
    order = sorted(np.flatnonzero(images), key=lambda i: (right[i] / images[i], -images[i]))
    return [
        (
            found.class_names[i], int(images[i]), f"{right[i] / images[i]:.4f}", int(predicted[i]),
            *((found.class_names[confused[i][0]], confused[i][1]) if i in confused else ("", 0)),
        )
        for i in map(int, order)
    ]  # fmt: skip


def confusion(found: Predictions, classes: Sequence[int]) -> Int[np.ndarray, "k k"]:
    """Return how often each of these classes (rows) is predicted as each of them (columns)."""
    place = np.full(len(found.class_names), -1)
    place[list(classes)] = np.arange(len(classes))
    true, predicted = place[found.label], place[found.predicted]
    kept = (true >= 0) & (predicted >= 0)
    return np.bincount(true[kept] * len(classes) + predicted[kept], minlength=len(classes) ** 2).reshape(
        len(classes), -1
    )


def draw_confusion(found: Predictions, path: Path) -> None:
    """Draw the confusion matrix, as fractions of each true class, into a PNG file, for the most confused classes."""
    size = len(found.class_names)
    title, classes = "confusion matrix", list(range(size))
    if size > CLASSES:
        involved = np.bincount(np.concatenate([found.label[found.wrong], found.predicted[found.wrong]]), minlength=size)
        classes = sorted(np.argsort(-involved, kind="stable")[:CLASSES].tolist())
        title = f"confusion matrix of the {CLASSES} of {size:,} classes in the most mistakes"
    counts = confusion(found, classes)
    totals = np.bincount(found.label, minlength=size)[classes].reshape(-1, 1)
    side = 2.6 + 0.28 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(counts / np.maximum(totals, 1), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axis, shrink=0.7, label="share of the true class")
    names = [picture(cut(found.class_names[i], 20)) for i in classes]
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    axis.set_xticklabels(names, rotation=90, fontsize=8)
    axis.set_yticklabels(names, fontsize=8)
    axis.set_title(title, fontsize=10)
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = counts[row, column] > totals[row, 0] / 2
        axis.text(
            column, row, counts[row, column], ha="center", va="center", fontsize=6, color="white" if dark else "black"
        )
    save(figure, path)


def write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file; see printable.csv_cell for names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *(map(csv_cell, row) for row in rows)])
