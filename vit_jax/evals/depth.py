"""Measure the errors of per-pixel predictions, such as depth."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.source import PixelNumbers, Source
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError

THRESHOLDS = {"delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3}


class Depth(Evaluator):
    """`rmse`, `abs_rel`, `delta1` to `delta3`, `loss` and `num_examples`, as defined in arXiv:1406.2283, section 4.

    Means are over all known pixels of the whole data set, at the size of the labels. delta1 is the fraction of pixels
    with max(predicted / true, true / predicted) below 1.25; delta2 and delta3 use its square and cube. These and
    abs_rel only count pixels whose true number is above 0. With multi_scale, predictions combine several scales and
    mirror images.
    """

    needs = ("numbers", "loss")

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 8,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
        multi_scale: bool = False,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        found = [key for key, field in self.spec.fields.items() if isinstance(field, PixelNumbers)]
        if len(found) != 1:
            raise UserError(
                f"depth.Depth measures one field of numbers of pixels; found {', '.join(map(repr, self.spec.fields))}: take "
                "source type='segments.NumbersFolder'."
            )
        self._key, self._output = found[0], "numbers_multi" if multi_scale else "numbers"
        self.needs = (self._output, "loss")

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        truth, found = batch[self._key], outputs[self._output]
        known = jnp.isfinite(truth)
        positive = known & (truth > 0)
        safe = jnp.where(positive, truth, 1.0)
        # A prediction of 0 or below exceeds every threshold.
        ratio = jnp.where(found > 0, jnp.maximum(found / safe, safe / jnp.where(found > 0, found, 1.0)), jnp.inf)

        def total(x: jax.Array, where: jax.Array) -> jax.Array:
            return jnp.where(where, x, jnp.zeros((), x.dtype)).sum(axis=(1, 2))

        sums = {name: total((ratio < most).astype(jnp.int32), positive) for name, most in THRESHOLDS.items()}
        sums |= {
            "pixels": known.sum(axis=(1, 2)),
            "positive": positive.sum(axis=(1, 2)),
            "squares": total(jnp.square(found - truth), known),
            "relative": total(jnp.abs(found - safe) / safe, positive),
        }
        return Measured({"loss": outputs["loss"]}, sums)

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        sums, losses = measured[""], measured[""]["loss"]
        pixels, positive = (max(1, int(sums[key])) for key in ("pixels", "positive"))
        return {
            "rmse": math.sqrt(float(sums["squares"]) / pixels),
            "abs_rel": float(sums["relative"]) / positive,
            **{name: int(sums[name]) / positive for name in THRESHOLDS},
            "loss": float(losses.mean(dtype=np.float64)),
            "num_examples": len(losses),
        }
