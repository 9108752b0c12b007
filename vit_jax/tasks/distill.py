"""Learning from a teacher (arXiv:1503.02531)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.tasks.classify import Classify
from vit_jax.tasks.losses import LOSSES, kl_divergence
from vit_jax.tasks.task import Batch, Task, apply_with, normalize
from vit_jax.types import Params, Pixels, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model and its weights; it is shown the student's very images, resized where its own are of another size."""

    task: Task
    params: Params
    image_shape: tuple[int, int, int]

    def logits(self, params: Params, images: Pixels) -> Float[Array, "b classes"]:
        """Logits of the student's images."""
        height, width, channels = self.image_shape
        if images.shape[3] != channels:
            raise UserError(f"The teacher takes {channels} channels; found training images of {images.shape[1:]}.")
        if images.shape[1:3] != (height, width):
            images = jax.image.resize(
                images.astype(jnp.float32), (images.shape[0], height, width, channels), "bilinear", antialias=True
            )
        return jax.lax.stop_gradient(self.task.predict(params, {"image": images})["logits"])


@dataclasses.dataclass(frozen=True)
class Distill(Classify):
    """(1 - weight) times the loss of Classify plus weight times that of a teacher, which `teacher` of the config names.

    kind: "soft", the divergence of both softmaxes at `temperature` (arXiv:1503.02531), or "hard", the cross-entropy with the
    teacher's first class (arXiv:2012.12877, equation 3). The student of weight=1 matches the teacher's function alone; with
    the same crop and the same mixup for both, as here always, and many epochs that is arXiv:2106.05237. A `distilled` ViT
    learns the labels with the head on its class token and the teacher with that on its distillation token.
    """

    teacher: Teacher | None = None
    kind: Literal["soft", "hard"] = "soft"
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.weight <= 1 or self.temperature <= 0:
            raise UserError(
                f"task.weight={self.weight} and task.temperature={self.temperature}; expected a share in [0, 1] and a number "
                "above 0."
            )

    @property
    def constants(self) -> Params:
        """The teacher's weights."""
        return {} if self.teacher is None else self.teacher.params

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; with the teacher's logits."""
        if self.teacher is None:
            raise UserError("task.Distill has no teacher; name a model with --config.teacher=REF.")
        batch = super().prepare(batch, rng, constants)
        logits = self.teacher.logits(constants, batch["image"])
        if logits.shape != batch["target"].shape:
            raise UserError(
                f"The teacher has {logits.shape[1]} classes, the training data {batch['target'].shape[1]}; distillation needs "
                "the same."
            )
        return batch | {"teacher": logits}

    def loss(self, params: Params, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], dict[str, Array]]:
        """See Classify; `loss_labels` and `loss_teacher` are the two parts, and `agreement` is the share of equal classes."""
        logits, sown = apply_with(self.model, params, normalize(batch["image"], self.mean, self.std), rng)
        first, teacher = sown.get("logits_cls", logits), batch["teacher"]
        second = sown.get("logits_dist", logits)
        labels = LOSSES[self.loss_name](first, batch["target"]).mean()
        if self.kind == "soft":
            taught = kl_divergence(second, teacher, self.temperature).mean()
        else:
            hard = jax.nn.one_hot(teacher.argmax(axis=1), teacher.shape[1])
            taught = LOSSES["softmax_xent"](second, hard).mean()
        return (1.0 - self.weight) * labels + self.weight * taught, {
            "accuracy": jnp.mean(logits.argmax(axis=1) == batch["target"].argmax(axis=1)),
            "agreement": jnp.mean(logits.argmax(axis=1) == teacher.argmax(axis=1)),
            "loss_labels": labels,
            "loss_teacher": taught,
        }
