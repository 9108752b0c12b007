"""Measures of pixels against a confusion matrix and errors in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data.source import Image, PixelNumbers, Segments, Source
from vit_jax.evals.depth import Depth
from vit_jax.evals.evaluator import evaluate
from vit_jax.evals.miou import MeanIou

NAMES = ("a", "b", "c", "d", "e")


class Maps(Source):
    """Blank images with given labels of pixels."""

    def __init__(self, key, field, labels):
        self.fields, self.key, self.labels = {"image": Image(), key: field}, key, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": np.full((6, 7, 3), index, np.uint8), self.key: self.labels[index]}

    def name(self, index):
        return str(index)


def measured(evaluator, output, found):
    """Runs an evaluator on predictions that are given by the index of the image."""

    def predict(weights, batch, needs, hidden):
        index = np.asarray(batch["index"])
        outputs = {output: jnp.asarray(found)[index], "loss": jnp.zeros(len(index))}
        return {key: jnp.asarray(x) for key, x in batch.items()}, outputs

    return evaluate(evaluator, predict, None)[0]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_mean_iou_is_that_of_a_confusion_matrix_with_ignored_pixels_and_absent_classes(batch_size):
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 255], size=(7, 6, 7)).astype(np.uint8)  # d and e are never true
    truth[3] = 255
    found = rng.integers(0, 4, (7, 6, 7)).astype(np.uint8)  # and e is never predicted
    known = truth != 255
    confusion = np.zeros((5, 5), int)
    np.add.at(confusion, (truth[known], found[known]), 1)
    right, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    result = measured(MeanIou(Maps("segments", Segments(NAMES), truth), "", batch_size), "segments", found)
    assert result["miou"] == pytest.approx(np.mean(right[:4] / union[:4]), abs=1e-15)
    assert result["iou/d"] == 0.0
    assert "iou/e" not in result
    assert result["pixel_accuracy"] == right.sum() / known.sum()
    assert result["num_examples"] == 7


def test_mean_iou_is_that_of_torchmetrics():
    from tests.peers import torch

    torchmetrics = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(2)
    truth, found = rng.choice([0, 1, 2, 255], size=(4, 6, 7)), rng.integers(0, 4, (4, 6, 7))
    metric = torchmetrics.MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    expected = metric(torch.tensor(found), torch.tensor(truth))
    source = Maps("segments", Segments(NAMES), truth.astype(np.uint8))
    result = measured(MeanIou(source, "", 3), "segments", found.astype(np.uint8))
    assert result["miou"] == pytest.approx(float(expected), abs=1e-6)


def test_an_image_that_cannot_be_read_takes_no_part():
    truth = np.zeros((3, 6, 7), np.uint8)
    found = np.stack([np.zeros((6, 7)), np.ones((6, 7)), np.zeros((6, 7))]).astype(np.uint8)
    source = Maps("segments", Segments(NAMES), truth)
    evaluator = MeanIou(source, "", 2)
    evaluator.data._reader.record(1, "damaged")
    result = measured(evaluator, "segments", found)
    assert (result["miou"], result["unreadable"], result["num_examples"]) == (1.0, 1, 2)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_errors_of_depth_are_those_of_numpy(batch_size):
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.5, 10, (5, 6, 7)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    truth[0, 0, 0] = -1.0  # known, but without a ratio
    found = (np.nan_to_num(truth, nan=3.0) * rng.uniform(0.6, 1.6, truth.shape)).astype(np.float32)
    found[1, 1] = -0.5
    result = measured(Depth(Maps("numbers", PixelNumbers(), truth), "", batch_size), "numbers", found)
    t, p = truth[np.isfinite(truth)].astype(np.float64), found[np.isfinite(truth)].astype(np.float64)
    assert result["rmse"] == pytest.approx(np.sqrt(np.mean((t - p) ** 2)), rel=1e-6)
    t, p = t[t > 0], p[t > 0]
    assert result["abs_rel"] == pytest.approx(np.mean(np.abs(t - p) / t), rel=1e-6)
    with np.errstate(divide="ignore"):
        ratio = np.where(p > 0, np.maximum(p / t, t / p), np.inf)
    for i, name in enumerate(("delta1", "delta2", "delta3"), 1):
        assert result[name] == np.mean(ratio < 1.25**i)


def test_the_confusion_of_large_images_is_exact():
    truth = np.zeros((1, 6, 7), np.uint8)
    evaluator = MeanIou(Maps("segments", Segments(NAMES), truth), "", 1)
    batch = {"segments": jnp.zeros((1, 5000, 4000), jnp.uint8)}
    outputs = {"segments": jnp.zeros((1, 5000, 4000), jnp.uint8), "loss": jnp.zeros(1)}
    assert int(jax.jit(evaluator.measure)(batch, outputs).sums["confusion"][0, 0, 0]) == 20_000_000
