"""Regression: predict numbers from images."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.tasks.losses import ERRORS
from vit_jax.tasks.mixing import Mix
from vit_jax.tasks.supervised import Supervised
from vit_jax.tasks.task import Aux, Batch, Scale, TaskState, Weights, check_scale
from vit_jax.types import Params, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Regress(Supervised):
    """Predict the numbers of each image, normalised as (number - target_mean) / target_std.

    Predictions, and the loss that `predict` reports, are in the numbers' own units. mix applies only in training.
    """

    loss_name: str = "squared_error"
    target_mean: Scale = 0.0
    target_std: Scale = 1.0
    mix: Mix | None = None
    measured_by = "regression"

    def __post_init__(self):
        super().__post_init__()
        if self.loss_name not in ERRORS:
            raise UserError(f"task.loss_name is {self.loss_name!r}; expected one of {', '.join(ERRORS)}.")
        check_scale(self.target_mean, self.target_std, "target_")

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task."""
        center, width = self._scale(batch["label"])
        images, targets = batch["image"], (batch["label"] - center) / width
        if self.mix is not None:
            images, targets = self.mix(rng, images, targets)
        return {"image": images, "target": targets}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; the metric is the mean absolute error in the numbers' own units."""
        values, _, stats = self.train_outputs(params, state, batch["image"], rng)
        _, width = self._scale(batch["target"])
        error = jnp.mean(jnp.abs(values - batch["target"]) * width)
        return ERRORS[self.loss_name](values, batch["target"]).mean(), Aux({"absolute_error": error}, stats)

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """Return `values` in the numbers' own units, the same as `logits`, and `features`."""
        values, outputs = self.outputs(weights, batch["image"])
        center, width = self._scale(values)
        values = values * width + center
        outputs |= {"values": values, "logits": values}
        if "label" in batch:
            outputs["loss"] = ERRORS[self.loss_name](values, batch["label"])
        return outputs

    def _scale(self, targets: Array) -> tuple[Array, Array]:
        if targets.ndim != 2:
            raise UserError("Regression needs numbers for each image, such as from data.source type='table.Table'.")
        for name, scale in (("target_mean", self.target_mean), ("target_std", self.target_std)):
            if isinstance(scale, tuple | list) and len(scale) != targets.shape[1]:
                raise UserError(
                    f"task.{name} is {scale}; expected one number, or {targets.shape[1]}, one for each target."
                )
        center, width = (
            jnp.broadcast_to(jnp.asarray(x, jnp.float32), (1, targets.shape[1]))
            for x in (self.target_mean, self.target_std)
        )
        return center, width
