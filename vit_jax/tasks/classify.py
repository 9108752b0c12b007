"""Supervised classification with one label for each image."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.losses import LOSSES
from vit_jax.tasks.task import Batch, Scale, Task, normalize
from vit_jax.types import Params, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """Softmax or sigmoid cross-entropy with label smoothing; images are normalised by `mean` and `std` of [0, 1] values.

    Smoothing is for training only: the loss that `predict` reports is the plain one.
    """

    model: nn.Module
    loss_name: str = "softmax_xent"
    label_smoothing: float = 0.0
    mean: Scale = 0.5
    std: Scale = 0.5

    def __post_init__(self):
        if self.loss_name not in LOSSES:
            raise UserError(f"task.loss_name is {self.loss_name!r}; expected one of {', '.join(LOSSES)}.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"task.label_smoothing is {self.label_smoothing}; expected a number in [0, 1).")
        if min(self.std if isinstance(self.std, tuple | list) else (self.std,), default=0) <= 0:
            raise UserError(f"task.std is {self.std}; expected numbers above 0.")

    def init(self, rng: Rng, image_shape: tuple[int, int, int]) -> Params:
        """See Task."""
        return self.model.init(rng, jnp.zeros((1, *image_shape)))["params"]

    def loss(self, params: Params, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], dict[str, Array]]:
        """See Task; the metric is the accuracy on the augmented images."""
        images = normalize(batch["image"], self.mean, self.std)
        logits: Array = self.model.apply({"params": params}, images, train=True, rngs={"dropout": rng})  # type: ignore[assignment]
        losses = LOSSES[self.loss_name](logits, batch["label"], self.label_smoothing)
        return losses.mean(), {"accuracy": jnp.mean(logits.argmax(axis=1) == batch["label"])}

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """See Task."""
        images = normalize(batch["image"], self.mean, self.std)
        logits, sown = self.model.apply({"params": params}, images, mutable=["intermediates"])
        logits = logits.astype(jnp.float32)
        probs = jax.nn.softmax(logits) if self.loss_name == "softmax_xent" else jax.nn.sigmoid(logits)
        outputs = {"logits": logits, "probs": probs, "features": sown["intermediates"]["features"]}
        if "label" in batch:
            outputs["loss"] = LOSSES[self.loss_name](logits, batch["label"])
        return outputs
