"""A visual tokenizer: codes from which a teacher's features can be rebuilt (VQ-KD of BEiT v2, arXiv:2208.06366, section 2.1)."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from vit_jax.layers.block import Block
from vit_jax.layers.encoder import Encoder
from vit_jax.tasks import task
from vit_jax.tasks.pretraining import Pretraining
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState, Weights
from vit_jax.tasks.teacher import Teacher
from vit_jax.types import Count, Params, Rng, Units, UserError

Codes = Int[Array, "b patches"]


class Rebuild(nn.Module):
    """A transformer that maps the chosen codes to the teacher's features of the patches."""

    width: int
    depth: int
    num_heads: int
    outputs: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, codes: Float[Array, "b patches c"]) -> Float[Array, "b patches o"]:
        """Map codes [b, patches, code_width] to features [b, patches, outputs]."""
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(codes)
        block = partial(Block, 4 * self.width, self.num_heads, dtype=self.dtype)
        x = Encoder(block, self.depth, dtype=self.dtype, name="encoder")(x, train=True)
        return nn.Dense(self.outputs, name="features")(jnp.tanh(nn.Dense(self.width, name="hidden")(x)))


@dataclasses.dataclass(frozen=True)
class VqKd(Pretraining):
    """Rebuild a teacher's tokens from discrete codes of the patches (equation 1).

    The loss is 1 - cosine of the rebuilt and the teacher's tokens, plus `commitment` times the squared distance of
    projected tokens from their codes. The config's `teacher` gives `tokens` for the same number of patches. Each patch
    is assigned the nearest by cosine of `codes` unit vectors, which are running averages, with decay `code_decay`, of
    the tokens assigned to them; unused codes do not change. The gradient passes the assignment unchanged. `predict`
    also returns `codes` [b, patches], which beit.Beit predicts. The metric `codes_used` is the share of the codes that
    are used in a batch.
    """

    teacher: Teacher | None = None
    teacher_width: Units = 768
    codes: Units = 8192
    code_width: Units = 32
    code_decay: float = 0.99
    decoder_width: Units = 768
    decoder_depth: Count = 1
    decoder_heads: Count = 12
    commitment: float = 1.0
    decomposable = True

    def __post_init__(self):
        super().__post_init__()
        self.need_stages()
        if self.codes < 2 or not 0 <= self.code_decay < 1 or self.commitment < 0:
            raise UserError(
                f"task.codes={self.codes}, task.code_decay={self.code_decay} and task.commitment={self.commitment}; expected at "
                "least 2 codes, a share in [0, 1) and a weight of at least 0."
            )

    @property
    def constants(self) -> Params:
        """The teacher's weights."""
        return {} if self.teacher is None else self.teacher.weights

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        rows, columns = self.model.grid(spec["image"].shape[:2])
        # The codebook is initialized with random directions, which are drawn with the parameters but not trained.
        codebook = jax.random.normal(task.stream(rng, "codebook"), (self.codes, self.code_width))
        decoder = self._decoder.init(task.stream(rng, "decoder"), jnp.zeros((1, rows * columns, self.code_width)))
        project = nn.Dense(self.code_width).init(task.stream(rng, "project"), jnp.zeros((1, self.model.width)))
        return {
            "backbone": self.init_backbone(rng, spec["image"].shape),
            "project": project["params"],
            "decoder": decoder["params"],
            "codebook": _unit(codebook),
        }

    def init_state(self, params: Params) -> TaskState:
        """See Task."""
        return {"codebook": params["codebook"]}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; adds the teacher's tokens."""
        if self.teacher is None:
            raise UserError(
                "task.VqKd has no teacher; name a model whose features it rebuilds with --config.teacher=REF."
            )
        features = self.teacher.predict(constants, batch["image"], "tokens")
        rows, columns = self.model.grid(batch["image"].shape[1:3])
        if features.shape[1:] != (rows * columns, self.teacher_width):
            raise UserError(
                f"The teacher gives {features.shape[1]} patches of width {features.shape[2]}; the model has {rows} x {columns}, "
                f"and task.teacher_width is {self.teacher_width}: make both the same."
            )
        return {"image": batch["image"], "teacher": features}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; stats: how often each code is chosen and the sum of the tokens that choose it, per image."""
        projected = self._project(params, batch["image"], rng)
        chosen = nearest(projected, state["codebook"])
        codes = state["codebook"][chosen]
        passed = projected + jax.lax.stop_gradient(codes - projected)
        rebuilt: Any = self._decoder.apply({"params": params["decoder"]}, passed)
        cosine = 1.0 - (_unit(rebuilt) * _unit(batch["teacher"])).sum(axis=2).mean(axis=1)
        apart = jnp.square(projected - codes).mean(axis=(1, 2))
        one_hot = jax.nn.one_hot(chosen, self.codes)
        counts = one_hot.sum(axis=1).mean(axis=0)
        sums = jnp.einsum("bnk,bnd->kd", one_hot, jax.lax.stop_gradient(projected)) / len(chosen)
        metrics = {"loss_features": cosine.mean(), "loss_codes": apart.mean(), "codes_used": jnp.mean(counts > 0)}
        return (cosine + self.commitment * apart).mean(), Aux(metrics, {"counts": counts, "sums": sums})

    def update(self, params: Params, state: TaskState, stats: Any, step: Array) -> TaskState:
        """See Task."""
        means = _unit(stats["sums"])
        moved = _unit(self.code_decay * state["codebook"] + (1.0 - self.code_decay) * means)
        return {"codebook": jnp.where(stats["counts"][:, None] > 0, moved, state["codebook"])}

    def evaluated(self, params: Params, state: TaskState) -> dict[str, Weights]:
        """See Task."""
        return {"": {"params": {**params, "codebook": state["codebook"]}}}

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """See Pretraining; adds the `codes` of the patches."""
        params = weights["params"]
        codes = nearest(self._project(params, batch["image"]), params["codebook"])
        return super().predict(weights, batch) | {"codes": codes}

    def _project(self, params: Params, images: Array, rng: Rng | None = None) -> Float[Array, "b patches d"]:
        tokens = self.tokens(params["backbone"], images, rng)
        found: Any = nn.Dense(self.code_width).apply({"params": params["project"]}, jnp.tanh(tokens))
        return _unit(found)

    @property
    def _decoder(self) -> Rebuild:
        return Rebuild(self.decoder_width, self.decoder_depth, self.decoder_heads, self.teacher_width, self.dtype)


def nearest(tokens: Float[Array, "b patches d"], codebook: Float[Array, "k d"]) -> Codes:
    """Return the code with the largest cosine for each token."""
    return jnp.argmax(jax.lax.stop_gradient(tokens) @ codebook.T, axis=2)


def _unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
