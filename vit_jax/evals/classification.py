"""Accuracy, loss and calibration of a classifier."""

import math

import numpy as np
from jaxtyping import Bool, Float

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Evaluator, Predict
from vit_jax.types import UserError


def calibration_error(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], bins: int = 15) -> float:
    """The expected calibration error: |accuracy - mean confidence| of bins of equal width, weighted by their examples.

    arXiv:1706.04599, equation 3, with bins closed at their upper end.
    """
    index = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, correct.astype(np.float64) - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


class Classification(Evaluator):
    """Top-1 `accuracy`, `loss` (mean of the task's loss per example), `ece` (see calibration_error) and `num_examples`.

    With more than five classes `accuracy_top5`, and `unreadable` files where there were any. After a call `per_class` is a list
    of (class, accuracy, examples), for the classes that there were examples of.
    """

    def __init__(self, source: Source, preprocess: str, batch_size: int = 256, threads: int = 2, cache_mb: int = 2048):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        if source.label_shape:
            raise UserError(
                "Found several numbers for each image, expected one class: use multilabel.MultiLabel or regression.Regression."
            )
        self.per_class: list[tuple[str, float, int]] = []

    def __call__(self, predict: Predict) -> dict[str, float]:
        """See Evaluator; the sums are exact, so the result does not depend on how the examples are batched."""
        labels, correct, confidence = [], [], []
        top5, losses = 0, []
        for out in self.outputs(predict):
            logits, label = out["logits"], out["label"]
            labels.append(label)
            correct.append(logits.argmax(axis=1) == label)
            confidence.append(out["probs"].max(axis=1))
            true = np.take_along_axis(logits, label[:, None], axis=1)
            first = np.arange(logits.shape[1])[None] < label[:, None]  # of equal logits the first counts, as for argmax
            # Not `logits > true`, by which no logit would be ahead where they are NaN.
            top5 += int(((~(logits < true) & ((logits != true) | first)).sum(axis=1) <= 4).sum())
            losses += out["loss"].tolist()
        label, right = np.concatenate(labels), np.concatenate(correct)
        self._count(label, right)
        result = {
            "accuracy": int(right.sum()) / len(losses),
            "loss": math.fsum(losses) / len(losses),
            "ece": calibration_error(np.concatenate(confidence), right),
            "num_examples": len(losses),
        }
        if len(self.spec.class_names) > 5:
            result["accuracy_top5"] = top5 / len(losses)
        unreadable = self.spec.num_examples - len(losses)
        return result | ({"unreadable": unreadable} if unreadable else {})

    def _count(self, label: np.ndarray, right: np.ndarray) -> None:
        names = self.spec.class_names
        counts = np.bincount(label, minlength=len(names))
        hits = np.bincount(label, right, minlength=len(names))
        self.per_class = [
            (name, float(hit / count), int(count))
            for name, hit, count in zip(names, hits, counts, strict=True)
            if count
        ]
