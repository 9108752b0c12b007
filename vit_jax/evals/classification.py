"""Measure accuracy, loss and calibration of a classifier."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vit_jax.data.source import Label, Source
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError


def calibration_error(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], bins: int = 15) -> float:
    """Return the expected calibration error: |accuracy - mean confidence| over equal-width bins, weighted by size.

    See arXiv:1706.04599, equation 3; bins include their upper end.
    """
    index = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, correct.astype(np.float64) - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


class Classification(Evaluator):
    """Top-1 `accuracy`, `loss` (mean of the task's loss per example), `ece` (see calibration_error) and `num_examples`.

    Also `accuracy_top5` if there are more than five classes, and the number of `unreadable` files if there are any.
    """

    needs = ("logits", "probs", "loss")

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        if not isinstance(source.fields.get("label"), Label):
            raise UserError(
                "Found several numbers for each image, expected one class: use multilabel.MultiLabel or regression.Regression."
            )

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        logits, label = outputs["logits"], batch["label"].reshape(-1, 1)
        true = jnp.take_along_axis(logits, label, axis=1)
        first = jnp.arange(logits.shape[1]).reshape(1, -1) < label  # among equal logits the first wins, as in argmax
        # Not `logits > true`, which would rank no logit ahead if they are NaN.
        ahead = (~(logits < true) & ((logits != true) | first)).sum(axis=1)
        rows = {"label": batch["label"], "predicted": logits.argmax(axis=1), "confidence": outputs["probs"].max(axis=1)}
        return Measured(rows | {"top5": ahead <= 4, "loss": outputs["loss"]})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator; the sums are exact, so the result does not depend on how the examples are batched."""
        rows = measured[""]
        right, losses = rows["predicted"] == rows["label"], rows["loss"].tolist()
        result = {
            "accuracy": int(right.sum()) / len(losses),
            "loss": math.fsum(losses) / len(losses),
            "ece": calibration_error(rows["confidence"], right),
            "num_examples": len(losses),
        }
        if len(self.spec.class_names) > 5:
            result["accuracy_top5"] = int(rows["top5"].sum()) / len(losses)
        unreadable = self.spec.num_examples - len(losses)
        return result | ({"unreadable": unreadable} if unreadable else {})


def per_class(rows: Arrays, names: tuple[str, ...]) -> list[tuple[str, float, int]]:
    """Return (class, accuracy, examples) from the rows of Classification, for classes that have examples."""
    counts = np.bincount(rows["label"], minlength=len(names))
    hits = np.bincount(rows["label"], rows["predicted"] == rows["label"], minlength=len(names))
    return [
        (name, float(hit / count), int(count)) for name, hit, count in zip(names, hits, counts, strict=True) if count
    ]
