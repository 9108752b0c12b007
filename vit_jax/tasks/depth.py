"""A number for each pixel, such as its depth."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.data.source import PixelNumbers
from vit_jax.layers.bilinear import Map
from vit_jax.tasks.dense import Dense
from vit_jax.tasks.segment import mean_of_known
from vit_jax.tasks.task import Batch, Weights
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Depth(Dense):
    """Predict a number for each pixel; pixels without a number, which are NaN, are ignored.

    log: the head's output is the logarithm of the number; pixels with numbers not above 0 are ignored. loss_name: the
    mean "absolute_error" or "squared_error" over an example's pixels or, with log=True, "silog": mean(d^2) - mean(d)^2
    / 2, with d the difference of the logarithms (arXiv:1406.2283, equation 4).
    """

    log: bool = True
    loss_name: Literal["silog", "absolute_error", "squared_error"] = "silog"
    measured_by = "depth"
    kind = PixelNumbers

    def __post_init__(self):
        super().__post_init__()
        if self.loss_name == "silog" and not self.log:
            raise UserError("task.loss_name='silog' compares logarithms; give task.log=True, or 'absolute_error'.")

    @property
    def num_outputs(self) -> int:
        """See Dense."""
        return 1

    def losses(self, outputs: Map, labels: Array) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        """See Dense; the metric is the mean absolute error."""
        known = (labels > 0) & jnp.isfinite(labels) if self.log else jnp.isfinite(labels)
        labels = jnp.where(known, labels, 1.0)
        values = self.predicted(outputs)[..., 0]
        error = mean_of_known(jnp.abs(values - labels), known)
        if self.loss_name == "silog":
            d = outputs[..., 0] - jnp.log(labels)
            losses = mean_of_known(jnp.square(d), known) - 0.5 * jnp.square(mean_of_known(d, known))
        elif self.loss_name == "squared_error":
            losses = mean_of_known(jnp.square(values - labels), known)
        else:
            losses = error
        return losses, {"absolute_error": error}

    def predicted(self, outputs: Map) -> Map:
        """See Dense; the numbers themselves."""
        return jnp.exp(outputs) if self.log else outputs

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """Return `numbers` [b, h, w], `numbers_multi` at several scales, and `features`."""
        outputs = self.pixel_outputs(weights, batch)
        found = {
            "numbers": self.predicted(outputs)[..., 0],
            "numbers_multi": self.multi_scale(weights, batch)[..., 0],
            "pixel_outputs": outputs,
            **self.whole_features(weights, batch),
        }
        return found | ({"loss": self.losses(outputs, batch[self.key])[0]} if self.key in batch else {})
