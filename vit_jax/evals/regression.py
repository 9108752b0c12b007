"""Errors of regression."""

import math
from collections.abc import Mapping

import jax

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Evaluator, Predict
from vit_jax.types import UserError


class Regression(Evaluator):
    """`mean_absolute_error`, `root_mean_squared_error`, `r2` (means over the numbers of an image), `loss`, `num_examples`."""

    def __init__(self, source: Source, preprocess: str, batch_size: int = 256, threads: int = 2, cache_mb: int = 2048):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        if not source.label_shape:
            raise UserError(
                "Found classes, expected numbers: use classification.Classification, or a source of numbers."
            )

    def check(self, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """See Evaluator."""
        if "values" not in outputs:
            raise UserError("Found a model that gives no values, expected one trained by regress.Regress.")

    def __call__(self, predict: Predict) -> dict[str, float]:
        """See Evaluator."""
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        truth, values, losses = self.collected(predict, "label", "values", "loss")
        return {
            "mean_absolute_error": float(mean_absolute_error(truth, values)),
            "root_mean_squared_error": float(root_mean_squared_error(truth, values)),
            "r2": float(r2_score(truth, values)) if len(truth) > 1 else math.nan,
            "loss": math.fsum(losses.tolist()) / len(losses),
            "num_examples": len(losses),
        }
