"""What a classifier confuses, counted by scikit-learn, with names that are neither formulas nor text."""

import csv

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from vit_jax.printable import csv_cell
from vit_jax.viz.classes import Predictions, confusion, draw_confusion, worst, write_classes

NAMES = ("$\\frac{", "two\nlines", "数", "\udc80", "=cmd()")


@pytest.fixture
def found() -> Predictions:
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 5, 60), rng.integers(0, 4, 60)
    confidence = rng.random(60).astype(np.float32)
    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Predictions(label, predicted, confidence, NAMES, lambda i: pixels, lambda i: f"{i}_\udcff.png")


def test_the_matrix_is_that_of_scikit_learn(found):
    expected = confusion_matrix(found.label, found.predicted, labels=range(5))
    np.testing.assert_array_equal(confusion(found, range(5)), expected)
    np.testing.assert_array_equal(confusion(found, [3, 1]), expected[[3, 1]][:, [3, 1]])


def test_the_worst_class_is_first_and_the_most_confident_mistake_too(found):
    accuracy = [float(row[2]) for row in worst(found)]
    assert accuracy == sorted(accuracy)
    assert worst(found)[0][0] == NAMES[4]
    wrong = found.confidence[found.label != found.predicted]
    assert found.confidence[found.mistakes[0]] == wrong.max()
    assert len(found.mistakes) == len(wrong)


def test_hostile_names_are_drawn_and_written_as_text(found, tmp_path):
    write_classes(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictions.png",
        "confusion.png",
        "classes.csv",
        "mistakes.csv",
    }
    with (tmp_path / "classes.csv").open(newline="", encoding="utf-8") as file:
        assert {row["class"] for row in csv.DictReader(file)} == set(map(csv_cell, NAMES))


def test_of_many_classes_those_in_the_most_mistakes_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3000, 500)
    many = Predictions(label, (label + 1) % 3000, rng.random(500), tuple(map(str, range(3000))), lambda i: None, str)
    draw_confusion(many, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
