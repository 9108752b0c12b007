"""Self-distillation without labels: a student matches its own running average on other views (DINO, arXiv:2104.14294)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from vit_jax.tasks import task
from vit_jax.tasks.task import Aux, Batch, Spec, Task, TaskState, Weights, apply
from vit_jax.types import Params, Rng, UserError


class Head(nn.Module):
    """The projection head: three layers, a bottleneck of unit length, and a last layer of unit columns (section 3.1)."""

    hidden: int
    bottleneck: int
    outputs: int

    @nn.compact
    def __call__(self, features: Float[Array, "b d"], last_layer_learns: Array | float = 1.0) -> Float[Array, "b k"]:
        """Map features to scores of `outputs` prototypes; the last layer gets no gradient where it does not learn yet."""
        init = nn.initializers.normal(0.02)
        x = features
        for i, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
            x = nn.Dense(width, kernel_init=init, name=f"dense_{i}")(x)
            x = nn.gelu(x, approximate=False) if i < 2 else x
        x = x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
        kernel = self.param("prototypes", init, (self.bottleneck, self.outputs))
        kernel = kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
        return x @ (last_layer_learns * kernel + (1.0 - last_layer_learns) * jax.lax.stop_gradient(kernel))


@dataclasses.dataclass(frozen=True)
class Dino(Task):
    """Cross-entropy between the centred, sharpened teacher and the student, over pairs of different views (algorithm 1).

    Batches have `views` [b, 2, h, w, c], which both see, and may have `crops` [b, n, h2, w2, c], which only the student sees:
    the transform views(...) makes them. The teacher's momentum goes from `momentum` to 1 by a half cosine, its temperature
    from the first to the second of `teacher_temperature` over a share of the run, `warmup`; the last layer does not learn in
    the first `freeze_last` of the run. The teacher is evaluated, and the student as NAME_student.
    """

    model: nn.Module
    steps: int = 1
    outputs: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    momentum: float = 0.996
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    warmup: float = 0.1
    center_momentum: float = 0.9
    freeze_last: float = 0.01
    mean: task.Scale = (0.485, 0.456, 0.406)
    std: task.Scale = (0.229, 0.224, 0.225)
    decomposable = True

    def __post_init__(self):
        task.check_scale(self.mean, self.std)
        for name in ("momentum", "warmup", "center_momentum", "freeze_last"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"task.{name} is {getattr(self, name)}; expected a share in [0, 1).")
        if min(temperatures := (self.student_temperature, *self.teacher_temperature)) <= 0:
            raise UserError(f"The temperatures of task.Dino are {temperatures}; expected numbers above 0.")

    @property
    def head(self) -> Head:
        """The projection head."""
        return Head(self.hidden, self.bottleneck, self.outputs)

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task; raises UserError without at least two views."""
        if "views" not in spec or spec["views"].shape[0] < 2:
            found = {key: x.shape for key, x in spec.items()}
            raise UserError(
                f"task.Dino compares two views of an image; found examples of {found}: give data.preprocess a last transform "
                "views(2, ...) with a spec `view`, such as views(2, view='inception_crop(224, 0.4)|flip')."
            )
        shape = spec["views"].shape[1:]
        backbone = task.init_variables(self.model, rng, shape)["params"]
        features = jax.eval_shape(lambda: apply(self.model, {"params": backbone}, jnp.zeros((1, *shape)))[0])
        head = self.head.init(task.stream(rng, "head"), jnp.zeros(features.shape))["params"]
        return {"backbone": backbone, "head": head}

    def init_state(self, params: Params) -> TaskState:
        """See Task."""
        scalars = {"temperature": self._temperature(0), "last_layer_learns": self._last_layer_learns(0)}
        return {"teacher": params, "center": jnp.zeros((1, self.outputs)), **scalars}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; stats: the mean of the teacher's scores, for the centre."""
        teacher = self._scores(state["teacher"], batch["views"])
        targets = jax.lax.stop_gradient(jax.nn.softmax((teacher - state["center"][None]) / state["temperature"]))
        learns = state["last_layer_learns"]
        student = [self._scores(params, batch["views"], task.stream(rng, "dropout"), learns)]
        if "crops" in batch:
            student.append(self._scores(params, batch["crops"], task.stream(rng, "crops"), learns))
        log_probs = jax.nn.log_softmax(jnp.concatenate(student, axis=1) / self.student_temperature)
        pairs = -jnp.einsum("btk,bsk->bts", targets, log_probs)
        different = ~jnp.eye(pairs.shape[1], pairs.shape[2], dtype=bool)[None]
        entropy = -(targets * jnp.log(targets + 1e-12)).sum(axis=2).mean()
        losses = jnp.mean(pairs, axis=(1, 2), where=different)
        return losses.mean(), Aux(
            {"teacher_entropy": entropy}, {"center": teacher.mean(axis=1).mean(axis=0, keepdims=True)}
        )

    def update(self, params: Params, state: TaskState, stats: Any, step: Array) -> TaskState:
        """See Task."""
        progress = step / self.steps
        momentum = 1.0 - (1.0 - self.momentum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return {
            "teacher": jax.tree.map(lambda old, new: momentum * old + (1.0 - momentum) * new, state["teacher"], params),
            "center": self.center_momentum * state["center"] + (1.0 - self.center_momentum) * stats["center"],
            "temperature": self._temperature(step + 1),
            "last_layer_learns": self._last_layer_learns(step + 1),
        }

    def evaluated(self, params: Params, state: TaskState) -> dict[str, Weights]:
        """See Task."""
        return {"": {"params": state["teacher"]}, "student": {"params": params}}

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """Return the `features` of images."""
        return {"features": apply(*self.backbone(weights), task.normalize(batch["image"], self.mean, self.std))[0]}

    def backbone(self, weights: Weights) -> tuple[nn.Module, Weights]:
        """See Task."""
        return self.model, {"params": weights["params"]["backbone"]}

    def _scores(
        self, params: Params, views: UInt8[Array, "b v h w c"], rng: Rng | None = None, learns: Any = 1.0
    ) -> Float[Array, "b v k"]:
        """Return the scores of each view, of the student with `rng`."""
        images = task.normalize(rearrange(views, "b v h w c -> (b v) h w c"), self.mean, self.std)
        features, _, _ = apply(self.model, {"params": params["backbone"]}, images, rng)
        scores: Any = self.head.apply({"params": params["head"]}, features, learns)
        return rearrange(scores, "(b v) k -> b v k", b=len(views))

    def _temperature(self, step: Any) -> Array:
        first, last = self.teacher_temperature
        share = jnp.clip(step / max(1.0, self.warmup * self.steps), 0.0, 1.0)
        return jnp.asarray(first + (last - first) * share, jnp.float32)

    def _last_layer_learns(self, step: Any) -> Array:
        return jnp.asarray(step >= self.freeze_last * self.steps, jnp.float32)
