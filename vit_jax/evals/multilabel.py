"""Evaluate classification with several labels per image."""

import math
from collections.abc import Mapping

import jax
import numpy as np

from vit_jax.data.source import Label, Source
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError


class MultiLabel(Evaluator):
    """`mean_average_precision` over the classes, `f1_micro`, `f1_macro` (probability above 1/2), `loss`, `num_examples`.

    The labels are 0 or 1 for each class; classes without a positive example are left out of the two class means.
    """

    needs = ("probs", "loss")

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        if isinstance(source.fields.get("label"), Label):
            raise UserError(
                "Found one class for each image, expected several labels: use classification.Classification."
            )

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({"label": batch["label"], "probs": outputs["probs"], "loss": outputs["loss"]})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        from sklearn.metrics import average_precision_score

        labels, probs, losses = (measured[""][key] for key in ("label", "probs", "loss"))
        truth, found = labels > 0.5, probs > 0.5
        known = truth.any(axis=0)
        if not known.any():
            raise UserError("Found no labels in the images to evaluate, expected at least one.")
        precision = average_precision_score(truth[:, known], probs[:, known], average="macro")
        hits, answers = (truth & found).sum(axis=0), truth.sum(axis=0) + found.sum(axis=0)
        return {
            "mean_average_precision": float(precision),
            "f1_micro": float(2 * hits.sum() / answers.sum()),
            "f1_macro": float(np.mean(2 * hits[known] / answers[known])),
            "loss": math.fsum(losses.tolist()) / len(losses),
            "num_examples": len(losses),
        }
