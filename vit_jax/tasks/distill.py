"""Learning from a teacher (arXiv:1503.02531)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.tasks.classify import Classify
from vit_jax.tasks.losses import LOSSES, kl_divergence
from vit_jax.tasks.task import Aux, Batch, TaskState
from vit_jax.tasks.teacher import Teacher
from vit_jax.types import Params, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Distill(Classify):
    """Learn from labels and the config's `teacher`: (1 - weight) * loss of Classify + weight * distillation loss.

    kind: "soft", the KL divergence of both softmaxes at `temperature` (arXiv:1503.02531), or "hard", the cross-entropy
    with the teacher's top class (arXiv:2012.12877, equation 3). Student and teacher always see the same crop and the
    same mixup. With weight=1 the student only matches the teacher's function, which with many epochs is
    arXiv:2106.05237. A `distilled` ViT learns the labels with the head on its class token and the teacher with the head
    on its distillation token.
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
        return {} if self.teacher is None else self.teacher.weights

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; adds the teacher's logits."""
        if self.teacher is None:
            raise UserError("task.Distill has no teacher; name a model with --config.teacher=REF.")
        batch = super().prepare(batch, rng, constants)
        logits = self.teacher.predict(constants, batch["image"], "logits")
        if logits.shape != batch["target"].shape:
            raise UserError(
                f"The teacher has {logits.shape[1]} classes, the training data {batch['target'].shape[1]}; distillation needs "
                "the same."
            )
        return batch | {"teacher": logits}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Classify; `loss_labels` and `loss_teacher` are the two parts, `agreement` the share of equal top classes."""
        logits, sown, stats = self.train_outputs(params, state, batch["image"], rng)
        first, teacher = sown.get("logits_cls", logits), batch["teacher"]
        second = sown.get("logits_dist", logits)
        labels = LOSSES[self.loss_name](first, batch["target"]).mean()
        if self.kind == "soft":
            taught = kl_divergence(second, teacher, self.temperature).mean()
        else:
            hard = jax.nn.one_hot(teacher.argmax(axis=1), teacher.shape[1])
            taught = LOSSES["softmax_xent"](second, hard).mean()
        metrics = {
            "accuracy": jnp.mean(logits.argmax(axis=1) == batch["target"].argmax(axis=1)),
            "agreement": jnp.mean(logits.argmax(axis=1) == teacher.argmax(axis=1)),
            "loss_labels": labels,
            "loss_teacher": taught,
        }
        return (1.0 - self.weight) * labels + self.weight * taught, Aux(metrics, stats)
