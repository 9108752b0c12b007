"""Semantic segmentation: the class of each pixel."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from vit_jax.data.source import IGNORED, Segments
from vit_jax.layers.bilinear import Map
from vit_jax.tasks.dense import Dense
from vit_jax.tasks.task import Batch, Weights
from vit_jax.types import UserError

LossName = Literal["xent", "dice", "xent_dice"]


def pixel_xent(
    logits: Map, labels: Integer[Array, "b h w"], class_weights: tuple[float, ...] | None = None
) -> Float[Array, "b h w"]:
    """Return the cross-entropy of each pixel, times the weight of its class; 0 for pixels with the label 255."""
    known = labels != IGNORED
    classes = jnp.where(known, labels, 0).astype(jnp.int32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[..., None], axis=-1)[..., 0]
    weights = jnp.asarray(class_weights or (1.0,) * logits.shape[-1], jnp.float32)
    return jnp.where(known, -chosen * weights[classes], 0.0)


def dice(logits: Map, labels: Integer[Array, "b h w"], smooth: float = 1e-5) -> Float[Array, "b"]:
    """Return 1 - (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth), averaged over all classes (arXiv:1606.04797, section 3).

    p are the softmax probabilities and g the true classes of an example's labelled pixels. The paper squares them in
    its denominator.
    """
    known = (labels != IGNORED)[..., None]
    p = jnp.where(known, jax.nn.softmax(logits), 0.0)
    g = jax.nn.one_hot(labels, logits.shape[-1])  # all zeros for the label 255
    both, sizes = (p * g).sum(axis=(1, 2)), p.sum(axis=(1, 2)) + g.sum(axis=(1, 2))
    return (1.0 - (2.0 * both + smooth) / (sizes + smooth)).mean(axis=-1)


def mean_of_known(x: Float[Array, "b h w"], known: Bool[Array, "b h w"]) -> Float[Array, "b"]:
    """Return the mean of each example over its known pixels, 0 if there are none."""
    return jnp.where(known, x, 0.0).sum(axis=(1, 2)) / jnp.maximum(known.sum(axis=(1, 2)), 1)


@dataclasses.dataclass(frozen=True)
class Segment(Dense):
    """Predict the class of each pixel.

    loss_name: "xent", "dice", or "xent_dice", their sum. class_weights: the weight of each class in "xent"; `vit
    preview` prints suitable ones. The sum over an example's pixels is divided by the sum of their weights, as in torch.
    """

    loss_name: LossName = "xent"
    class_weights: tuple[float, ...] | None = None
    measured_by = "miou"
    kind = Segments

    def __post_init__(self):
        super().__post_init__()
        if self.class_weights is not None and len(self.class_weights) != self.num_outputs:
            raise UserError(
                f"task.class_weights has {len(self.class_weights)} numbers; expected {self.num_outputs}, one for each class."
            )
        if self.class_weights is not None and (min(self.class_weights) < 0 or self.loss_name == "dice"):
            raise UserError(
                f"task.class_weights={self.class_weights} with loss_name={self.loss_name!r}; expected numbers of at least 0, and "
                "a loss with cross-entropy."
            )

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the pixels' classes."""
        return self.fields[self.key].class_names if self.fields else ()  # type: ignore[attr-defined]

    @property
    def num_outputs(self) -> int:
        """See Dense."""
        return len(self.class_names)

    def losses(self, outputs: Map, labels: Array) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        """See Dense; the metric is the share of labelled pixels with the right class."""
        known = labels != IGNORED
        metrics = {"pixel_accuracy": mean_of_known((outputs.argmax(axis=-1) == labels).astype(jnp.float32), known)}
        losses = jnp.zeros(len(labels))
        if "xent" in self.loss_name:
            xent = pixel_xent(outputs, labels, self.class_weights)
            if self.class_weights is None:
                losses = losses + mean_of_known(xent, known)
            else:
                weights = jnp.asarray(self.class_weights, jnp.float32)[jnp.where(known, labels, 0)]
                total = jnp.where(known, weights, 0.0).sum(axis=(1, 2))
                losses = losses + xent.sum(axis=(1, 2)) / jnp.where(total > 0, total, 1.0)
        if "dice" in self.loss_name:
            losses = losses + dice(outputs, labels)
        return losses, metrics

    def predicted(self, outputs: Map) -> Map:
        """See Dense."""
        return jax.nn.softmax(outputs)

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """Return `segments` [b, h, w] and `pixel_probs` [b, h, w, classes], with "..._multi" at several scales, and `features`."""
        outputs, several = self.pixel_outputs(weights, batch), self.multi_scale(weights, batch)
        found = {
            "segments": outputs.argmax(axis=-1).astype(jnp.uint8),
            "segments_multi": several.argmax(axis=-1).astype(jnp.uint8),
            "pixel_outputs": outputs,
            "pixel_probs": self.predicted(outputs),
            "pixel_probs_multi": several,
            **self.whole_features(weights, batch),
        }
        return found | ({"loss": self.losses(outputs, batch[self.key])[0]} if self.key in batch else {})
