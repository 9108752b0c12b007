"""Evaluators of several labels and of numbers, and of ImageNet's variants."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evals.fake import evaluate
from vit_jax.data.source import Image, Label, Numbers, Source
from vit_jax.data.sources.fake import Fake
from vit_jax.data.sources.tfds import imagenet_names
from vit_jax.evals.classification import Classification
from vit_jax.evals.evaluator import check_needs
from vit_jax.evals.imagenet import ImageNet
from vit_jax.evals.multilabel import MultiLabel
from vit_jax.evals.regression import Regression
from vit_jax.types import UserError

RNG = np.random.default_rng(0)


class Listed(Source):
    """Images that tell their own index, with given labels."""

    def __init__(self, labels, class_names):
        self.labels = labels
        kind = Numbers if labels.ndim == 2 else Label
        self.fields = {"image": Image(), "label": kind(tuple(class_names))}

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        label = self.labels[index] if self.labels.ndim == 2 else int(self.labels[index])
        return {"image": np.full((1, 1, 1), index, np.uint8), "label": label}

    def name(self, index):
        return str(index)


def answering(**outputs):
    """A predict function that gives each image's row of some arrays."""
    return lambda batch: {key: rows[batch["image"][:, 0, 0, 0]] for key, rows in outputs.items()}


def test_mean_average_precision_is_that_of_its_definition(agrees):
    labels = (RNG.random((25, 4)) < 0.3).astype(np.float32)
    labels[:, 3] = 0  # a class without an example does not count
    probs = RNG.random((25, 4))
    result = evaluate(MultiLabel(Listed(labels, "abcd"), "", 8), answering(probs=probs, loss=np.arange(25.0)))
    expected = []
    for c in range(3):
        hits = labels[np.argsort(-probs[:, c]), c]
        expected.append(np.mean([hits[: i + 1].mean() for i in np.flatnonzero(hits)]))
    agrees(
        "mean average precision",
        "the definition, hit by hit",
        result["mean_average_precision"],
        np.mean(expected),
        1e-6,
    )
    assert (result["loss"], result["num_examples"]) == (12.0, 25)
    assert 0 < result["f1_micro"] < 1


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("columns", [1, 2])
def test_f1_is_of_the_positive_answers_whatever_the_number_of_classes(columns, negatives):
    truth = np.zeros((3 + negatives, columns))
    truth[:3, 0] = 1
    probs = np.full_like(truth, 0.1)
    probs[:2, 0], probs[3:4, 0] = 0.9, 0.8
    result = evaluate(
        MultiLabel(Listed(truth, "abcd"[:columns]), ""), answering(probs=probs, loss=np.zeros(len(truth)))
    )
    # Two hits, one positive missed, one negative found where there is any.
    expected = 2 * 2 / (2 * 2 + 1 + bool(negatives))
    assert (result["f1_micro"], result["f1_macro"]) == pytest.approx((expected, expected))


def test_errors_of_regression_are_those_of_their_definitions(agrees):
    truth = RNG.normal(size=(20, 2)).astype(np.float32)
    values = truth + RNG.normal(size=(20, 2)).astype(np.float32)
    result = evaluate(Regression(Listed(truth, "xy"), "", 6), answering(values=values, loss=np.zeros(20)))
    error = (values - truth).astype(np.float64)
    r2 = 1 - (error**2).sum(axis=0) / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    expected = [np.abs(error).mean(), np.sqrt((error**2).mean(axis=0)).mean(), r2.mean()]
    found = [result[key] for key in ("mean_absolute_error", "root_mean_squared_error", "r2")]
    agrees("errors of regression", "their definitions", found, expected, 1e-5)


NAMES = imagenet_names()


def needs(evaluator, **sizes):
    """Checks an evaluator against a task with outputs of these sizes for an image."""

    def predict(weights, batch):
        return {key: jnp.zeros((len(batch["image"]), size)) for key, size in sizes.items()}

    check_needs("evals.test", evaluator, predict, None)


def test_any_of_the_real_labels_is_right_and_images_without_one_are_left_out():
    labels = np.zeros((4, 1000), np.float32)
    labels[0, [3, 7]] = labels[1, 5] = labels[3, 9] = 1
    logits = np.eye(1000)[[7, 6, 0, 9]]
    assert evaluate(ImageNet("real", Listed(labels, NAMES), ""), answering(logits=logits)) == {
        "accuracy": pytest.approx(2 / 3),
        "num_examples": 3,
    }


@pytest.mark.parametrize(("variant", "accuracy"), [("a", 1.0), ("r", 1.0), ("v2", 0.0), ("sketch", 0.0)])
def test_a_and_r_choose_among_the_classes_they_have(variant, accuracy):
    truth = np.arange(0, 400, 2)  # odd classes do not occur
    logits = 1.0 * np.eye(1000)[truth] + 2.0 * np.eye(1000)[truth + 1]
    result = evaluate(ImageNet(variant, Listed(truth, NAMES), ""), answering(logits=logits))
    assert result == {"accuracy": accuracy, "num_examples": 200}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MultiLabel(Fake(), ""), "one class for each image"),
        (lambda: Regression(Fake(), ""), "Found classes"),
        (lambda: Classification(Listed(np.zeros((2, 1)), "x"), ""), r"use multilabel\.MultiLabel"),
        (lambda: needs(Regression(Listed(np.zeros((2, 1)), "x"), ""), logits=1), "needs values, loss.* gives logits"),
        (lambda: needs(MultiLabel(Listed(np.zeros((2, 1)), "x"), ""), values=1), "needs probs, loss.* gives values"),
        (lambda: evaluate(MultiLabel(Listed(np.zeros((2, 1)), "x"), ""), answering(loss=np.zeros(2), probs=np.zeros((2, 1)))), "no label"),
        (lambda: ImageNet("v2", Fake(num_classes=3, num_examples=4), ""), "those of ImageNet: WordNet"),
        (lambda: ImageNet("real", Listed(np.array([1]), NAMES), ""), "real_label"),
        (lambda: needs(ImageNet("a", Listed(np.array([1]), NAMES), ""), logits=10), "gives 10 logits"),
        (lambda: evaluate(ImageNet("r", Listed(np.array([1]), NAMES), ""), answering(logits=np.zeros((1, 1000)))), "images of 1 classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_told(make, says):
    with pytest.raises(UserError, match=says):
        make()
