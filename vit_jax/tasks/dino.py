"""Self-distillation without labels: a student matches its own running average on other views (DINO, arXiv:2104.14294)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from vit_jax.tasks import task
from vit_jax.tasks.gram import Gram
from vit_jax.tasks.pretraining import Pretraining, half_cosine, moving_average, ramp
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState, Weights
from vit_jax.types import Params, Rng, Units, UserError


class Head(nn.Module):
    """The projection head: three layers, a bottleneck of unit length, and a last layer of unit columns (section 3.1)."""

    hidden: int
    bottleneck: int
    outputs: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "... d"], last_layer_learns: Array | float = 1.0
    ) -> Float[Array, "... k"]:
        """Map features to scores of `outputs` prototypes; the last layer has no gradient if last_layer_learns=0."""
        init = nn.initializers.normal(0.02)
        x = features
        for i, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
            x = nn.Dense(width, kernel_init=init, name=f"dense_{i}")(x)
            x = nn.gelu(x, approximate=False) if i < 2 else x
        x = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)
        kernel = self.param("prototypes", init, (self.bottleneck, self.outputs))
        kernel = kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
        return x @ (last_layer_learns * kernel + (1.0 - last_layer_learns) * jax.lax.stop_gradient(kernel))


class EncodedViews(NamedTuple):
    """Features [b, v, d] of views, and the tokens [b, v, patches, d] of a network in stages."""

    features: Array
    tokens: Any


@dataclasses.dataclass(frozen=True)
class Dino(Pretraining):
    """Cross-entropy between the centred, sharpened teacher and the student, over pairs of different views (algorithm 1).

    Batches contain `views` [b, 2, h, w, c], which both networks see, and may contain `crops` [b, n, h2, w2, c], which
    only the student sees; the transform views(...) makes them. The teacher's momentum goes from `momentum` to 1 along a
    half cosine, and its temperature from the first to the second `teacher_temperature` over the first share `warmup` of
    the run. The last layer is frozen for the first share `freeze_last` of the run. gram: see Gram. The teacher is
    evaluated, and the student as NAME_student. The metric `teacher_entropy` is near log(outputs) or 0 if the features
    collapse.
    """

    steps: int = 1
    outputs: Units = 65536
    hidden: Units = 2048
    bottleneck: Units = 256
    momentum: float = 0.996
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    warmup: float = 0.1
    center_momentum: float = 0.9
    freeze_last: float = 0.01
    gram: Gram | None = None
    decomposable = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("momentum", "warmup", "center_momentum", "freeze_last"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"task.{name} is {getattr(self, name)}; expected a share in [0, 1).")
        if min(temperatures := (self.student_temperature, *self.teacher_temperature)) <= 0:
            raise UserError(
                f"The temperatures of task.{type(self).__name__} are {temperatures}; expected numbers above 0."
            )
        if self.gram is not None:
            self.need_stages()

    @property
    def head(self) -> Head:
        """The projection head."""
        return Head(self.hidden, self.bottleneck, self.outputs)

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task; raises UserError without at least two views."""
        if "views" not in spec or spec["views"].shape[0] < 2:
            found = {key: x.shape for key, x in spec.items()}
            raise UserError(
                f"task.{type(self).__name__} compares two views of an image; found examples of {found}: give data.preprocess a "
                "last transform views(2, ...) with a spec `view`, such as views(2, view='random_resized_crop(224, 0.4)|flip')."
            )
        shape = spec["views"].shape[1:]
        backbone = self.init_backbone(rng, shape)
        views = jax.ShapeDtypeStruct((1, 1, *shape), "uint8")
        features = jax.eval_shape(lambda x: self.encode({"backbone": backbone}, x), views).features
        head = self.head.init(task.stream(rng, "head"), jnp.zeros(features.shape))["params"]
        return {"backbone": backbone, "head": head}

    def init_state(self, params: Params) -> TaskState:
        """See Task."""
        scalars = {"temperature": self._temperature(0), "last_layer_learns": self._last_layer_learns(0)}
        grams = {} if self.gram is None else {"gram": params["backbone"]}
        return {"teacher": params, "center": jnp.zeros((1, self.outputs)), **scalars, **grams}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; stats: the mean of the teacher's scores, for the centre."""
        seen = self.encode(params, batch["views"], task.stream(rng, "dropout"))
        scores = self.score(state["teacher"], self.encode(state["teacher"], batch["views"]).features)
        targets = self.targets(scores, state["center"], state["temperature"])
        loss = self.pair_loss(targets, params, state, seen, batch, rng)
        terms = self.regularizers(state, seen, batch)
        metrics = {"teacher_entropy": entropy(targets).mean(), **terms}
        return loss + sum(terms.values()), Aux(metrics, {"center": scores.mean(axis=1).mean(axis=0, keepdims=True)})

    def update(self, params: Params, state: TaskState, stats: Any, step: Array) -> TaskState:
        """See Task."""
        momentum = half_cosine(self.momentum, 1.0, step / self.steps)
        teacher = moving_average(state["teacher"], params, momentum)
        centers = {name: moving_average(state[name], mean, self.center_momentum) for name, mean in stats.items()}
        grams = {} if self.gram is None else {"gram": self.gram.update(state["gram"], teacher["backbone"], step)}
        scalars = {
            "temperature": self._temperature(step + 1),
            "last_layer_learns": self._last_layer_learns(step + 1),
        }
        return {**state, "teacher": teacher, **centers, **scalars, **grams}

    def evaluated(self, params: Params, state: TaskState) -> dict[str, Weights]:
        """See Task."""
        return {"": {"params": state["teacher"]}, "student": {"params": params}}

    def encode(
        self, params: Params, views: UInt8[Array, "b v h w c"], rng: Rng | None = None, masked: Array | None = None
    ) -> EncodedViews:
        """Return the features of each view; pass `rng` for the student. masked: bool [b, v, patches]."""
        images, b = self.normalize(rearrange(views, "b v h w c -> (b v) h w c")), len(views)
        weights = {"params": params["backbone"]}
        if not hasattr(self.model, "features"):
            return EncodedViews(
                rearrange(task.apply(self.model, weights, images, rng)[0], "(b v) d -> b v d", b=b), None
            )
        options = {} if masked is None else {"masked": rearrange(masked, "b v n -> (b v) n")}
        found = task.features(self.model, weights, images, rng, **options)
        patches = rearrange(found["tokens"][:, found["prefix"] :], "(b v) n d -> b v n d", b=b)
        return EncodedViews(rearrange(found["pooled"], "(b v) d -> b v d", b=b), patches)

    def score(self, params: Params, features: Float[Array, "... d"], learns: Any = 1.0) -> Float[Array, "... k"]:
        """Return the scores of features."""
        scores: Any = self.head.apply({"params": params["head"]}, features, learns)
        return scores

    def targets(self, scores: Array, center: Float[Array, "1 k"], temperature: Any) -> Float[Array, "b v k"]:
        """Return the teacher's probabilities."""
        return jax.lax.stop_gradient(jax.nn.softmax((scores - center[None]) / temperature))

    def pair_loss(
        self,
        targets: Float[Array, "b v k"],
        params: Params,
        state: TaskState,
        seen: EncodedViews,
        batch: Batch,
        rng: Rng,
    ) -> Float[Array, ""]:
        """Return the mean cross-entropy over all pairs of a teacher's view and another view or crop of the student."""
        student = [seen.features]
        if "crops" in batch:
            student.append(self.encode(params, batch["crops"], task.stream(rng, "crops")).features)
        scores = self.score(params, jnp.concatenate(student, axis=1), state["last_layer_learns"])
        pairs = -jnp.einsum("btk,bsk->bts", targets, jax.nn.log_softmax(scores / self.student_temperature))
        different = ~jnp.eye(pairs.shape[1], pairs.shape[2], dtype=bool)[None]
        return jnp.mean(pairs, axis=(1, 2), where=different).mean()

    def regularizers(self, state: TaskState, seen: EncodedViews, batch: Batch) -> dict[str, Array]:
        """Return additional terms of the loss by name: the term of `gram`, if it is set."""
        if self.gram is None:
            return {}
        return {"gram": self.gram(seen.tokens, self.encode({"backbone": state["gram"]}, batch["views"]).tokens)}

    def _temperature(self, step: Any) -> Array:
        return ramp(*self.teacher_temperature, step, self.warmup * self.steps)

    def _last_layer_learns(self, step: Any) -> Array:
        return jnp.asarray(step >= self.freeze_last * self.steps, jnp.float32)


def entropy(probs: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Return the entropy of distributions in nats."""
    return -(probs * jnp.log(probs + 1e-12)).sum(axis=-1)
