"""Measure the errors of regression."""

import math
from collections.abc import Mapping

import jax

from vit_jax.data.source import Label, Source
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError


class Regression(Evaluator):
    """`mean_absolute_error`, `root_mean_squared_error`, `r2` (means over the numbers of an image), `loss`, `num_examples`."""

    needs = ("values", "loss")

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
                "Found classes, expected numbers: use classification.Classification, or a source of numbers."
            )

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({"label": batch["label"], "values": outputs["values"], "loss": outputs["loss"]})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        truth, values, losses = (measured[""][key] for key in ("label", "values", "loss"))
        return {
            "mean_absolute_error": float(mean_absolute_error(truth, values)),
            "root_mean_squared_error": float(root_mean_squared_error(truth, values)),
            "r2": float(r2_score(truth, values)) if len(truth) > 1 else math.nan,
            "loss": math.fsum(losses.tolist()) / len(losses),
            "num_examples": len(losses),
        }
