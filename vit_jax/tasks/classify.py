"""Supervised classification, with one or several labels per image."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.data.source import Fields, Numbers
from vit_jax.tasks.losses import LOSSES, class_targets
from vit_jax.tasks.mixing import Mix
from vit_jax.tasks.supervised import Supervised
from vit_jax.tasks.task import Aux, Batch, TaskState, Weights
from vit_jax.types import Params, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Classify(Supervised):
    """Softmax or sigmoid cross-entropy on soft targets.

    label_smoothing, mix and target_threshold apply only in training: `predict` reports the plain loss. After mixing,
    targets above target_threshold become 1 and all other targets 0 (arXiv:2110.00476, section 2.1). With several labels
    per image (0 or 1 for each class) the loss is "sigmoid_xent", the sum over the classes, or "bce", their mean.
    """

    fields: Fields | None = None
    loss_name: str = "softmax_xent"
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    mix: Mix | None = None

    def __post_init__(self):
        super().__post_init__()
        if len(self.class_names) == 1 and self.loss_name == "softmax_xent":
            raise UserError(
                f"Found one class only to train on ({self.class_names[0]}), expected at least two: check the path, or add "
                "the images of the other classes in folders of their own."
            )
        label = (self.fields or {}).get("label")
        if isinstance(label, Numbers):
            raise UserError(
                f"Found numbers as labels ({label.example or ', '.join(self.class_names[:5])}), expected 0 or 1 for each "
                "class; to predict numbers use task type='regress.Regress'."
            )
        if self.loss_name not in LOSSES:
            raise UserError(f"task.loss_name is {self.loss_name!r}; expected one of {', '.join(LOSSES)}.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"task.label_smoothing is {self.label_smoothing}; expected a number in [0, 1).")
        if self.target_threshold is not None and not 0.0 <= self.target_threshold < 1.0:
            raise UserError(f"task.target_threshold is {self.target_threshold}; expected a number in [0, 1).")
        if self.target_threshold is not None and self.loss_name == "softmax_xent":
            raise UserError("task.target_threshold makes several classes true; give loss_name='bce' or 'sigmoid_xent'.")

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task."""
        images, targets = batch["image"], self._targets(batch["label"], self.label_smoothing)
        smallest = self.label_smoothing / (2 if batch["label"].ndim == 2 else targets.shape[1])
        if self.target_threshold is not None and smallest > self.target_threshold:
            raise UserError(
                f"task.label_smoothing={self.label_smoothing} makes every target at least {smallest:.3g}, above "
                f"task.target_threshold={self.target_threshold}, so that every class would be true; take no smoothing."
            )
        if self.mix is not None:
            images, targets = self.mix(rng, images, targets)
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype(jnp.float32)
        return {"image": images, "target": targets}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; the metric is how often the largest logit belongs to the largest target."""
        logits, _, stats = self.train_outputs(params, state, batch["image"], rng)
        losses = LOSSES[self.loss_name](logits, batch["target"])
        accuracy = jnp.mean(logits.argmax(axis=1) == batch["target"].argmax(axis=1))
        return losses.mean(), Aux({"accuracy": accuracy}, stats)

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """See Task."""
        logits, outputs = self.outputs(weights, batch["image"])
        probs = jax.nn.softmax(logits) if self.loss_name == "softmax_xent" else jax.nn.sigmoid(logits)
        outputs |= {"logits": logits, "probs": probs}
        if "label" in batch:
            outputs["loss"] = LOSSES[self.loss_name](logits, self._targets(batch["label"]))
        return outputs

    def _targets(self, labels: Array, smoothing: float = 0.0) -> Array:
        if labels.ndim == 2 and self.loss_name == "softmax_xent":
            raise UserError(
                "task.loss_name='softmax_xent' takes one label an image; several take 'sigmoid_xent' or 'bce'."
            )
        return class_targets(labels, self.num_outputs, smoothing)
