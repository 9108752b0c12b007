"""Predict the features of blocks of an image from the rest of it (I-JEPA, arXiv:2301.08243)."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from vit_jax.layers.block import Block
from vit_jax.layers.encoder import Encoder
from vit_jax.layers.posemb import sincos2d
from vit_jax.tasks import task
from vit_jax.tasks.pretraining import Pretraining, moving_average, ramp
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState, Weights
from vit_jax.types import Count, Params, Rng, Tokens, Units, UserError


class FeaturePredictor(nn.Module):
    """A narrow transformer on the encoded context and a mask token at the position of each patch to predict."""

    width: int
    depth: int
    num_heads: int
    outputs: int
    grid: tuple[int, int]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        context: Tokens,
        context_at: Int[Array, "b n"],
        targets_at: Int[Array, "b t"],
        valid: Bool[Array, "b both"],
    ) -> Float[Array, "b t o"]:
        """Predict features at the patches `targets_at`; valid: which of the n + t tokens count."""
        positions = jnp.asarray(sincos2d(*self.grid, self.width))
        init = nn.initializers.truncated_normal(0.02)
        x = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="embed")(context) + positions[context_at]
        token = self.param("mask_token", init, (1, 1, self.width))
        x = jnp.concatenate([x, token + positions[targets_at]], axis=1).astype(self.dtype)
        block = partial(Block, 4 * self.width, self.num_heads, dtype=self.dtype)
        x = Encoder(block, self.depth, dtype=self.dtype, name="encoder")(x, valid, train=True)
        return nn.Dense(self.outputs, kernel_init=init, name="features")(x[:, context_at.shape[1] :])


@dataclasses.dataclass(frozen=True)
class Ijepa(Pretraining):
    """Predict the features of `blocks` target blocks, normalised in each patch, with the smooth L1 loss (section 3).

    The target blocks of a batch are rectangles of one size, drawn from `target_scale` and `target_aspect`; the context
    is a square of `context_scale` without their patches. The target features come from a running average of the
    encoder, whose momentum goes linearly from `momentum` to 1; it is evaluated, and the encoder as NAME_student. The
    model has no class token.
    """

    steps: int = 1
    blocks: Count = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    predictor_width: Units = 384
    predictor_depth: Count = 6
    predictor_heads: Count = 12
    momentum: float = 0.996
    decomposable = True

    def __post_init__(self):
        super().__post_init__()
        self.need_stages()
        if self.model.num_prefix:
            raise UserError(
                "task.Ijepa predicts patches from patches; give model.pool='gap' and no class token or registers."
            )
        for name in ("target_scale", "context_scale", "target_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (high > 1 and name != "target_aspect"):
                raise UserError(f"task.{name} is {(low, high)}; expected two shares above 0, the smaller first.")
        if self.blocks < 1 or not 0 <= self.momentum < 1:
            raise UserError(
                f"task.blocks={self.blocks} and task.momentum={self.momentum}; expected at least 1 block and a share in [0, 1)."
            )

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        shape = spec["image"].shape
        rows, columns = grid = self.model.grid(shape[:2])
        if min(self.target_scale) * rows * columns < 1 or min(grid) < 3:
            raise UserError(
                f"task.Ijepa predicts blocks of {self.target_scale} of the image, which do not fit {rows} x {columns} patches; "
                "use a smaller model.patch_size or larger images."
            )
        backbone = self.init_backbone(rng, shape)
        at = jnp.zeros((1, 1), jnp.int32)
        predictor = self._predictor(grid)
        tokens = jnp.zeros((1, 1, self.model.width))
        made = predictor.init(task.stream(rng, "predictor"), tokens, at, at, jnp.ones((1, 2), bool))
        return {"backbone": backbone, "predictor": made["params"]}

    def init_state(self, params: Params) -> TaskState:
        """See Task."""
        return {"teacher": params["backbone"]}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; draws the blocks: `targets` [b, blocks, patches] and `context` [b, patches]."""
        b, grid = len(batch["image"]), self.model.grid(batch["image"].shape[1:3])
        sizes, places = task.stream(rng, "sizes"), task.stream(rng, "places")
        targets = _blocks(sizes, places, (b, self.blocks), grid, self.target_scale, self.target_aspect)
        whole = _blocks(
            jax.random.fold_in(sizes, 1), jax.random.fold_in(places, 1), (b, 1), grid, self.context_scale, (1.0, 1.0)
        )
        return {"image": batch["image"], "targets": targets, "context": whole[:, 0] & ~targets.any(axis=1)}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task."""
        images, grid = batch["image"], self.model.grid(batch["image"].shape[1:3])
        features = jax.lax.stop_gradient(self.tokens(state["teacher"], images))
        mean, variance = features.mean(axis=2, keepdims=True), features.var(axis=2, keepdims=True)
        features = (features - mean) / jnp.sqrt(variance + 1e-5)
        size = grid[0] * grid[1]
        context_at, seen = _gathered(batch["context"], size - math.floor(self.target_scale[0] * size))
        most = _most(grid, self.target_scale[1], self.target_aspect)
        targets_at, asked = _gathered(rearrange(batch["targets"], "b k n -> (b k) n"), most)

        def encode(model: nn.Module, images: Array) -> Tokens:
            tokens = jnp.take_along_axis(model.embed(images, train=True), context_at[:, :, None], axis=1)
            return model.encode(tokens, seen, grid=grid, kept=context_at, train=True)

        encoded: Any = self.model.apply(
            {"params": params["backbone"]}, self.normalize(images), method=encode, rngs={"dropout": rng}
        )
        context, at, counts = (repeat(x, "b ... -> (b k) ...", k=self.blocks) for x in (encoded, context_at, seen))
        predicted: Any = self._predictor(grid).apply(
            {"params": params["predictor"]}, context, at, targets_at, jnp.concatenate([counts, asked], axis=1)
        )
        expected = jnp.take_along_axis(
            repeat(features, "b n d -> (b k) n d", k=self.blocks), targets_at[:, :, None], axis=1
        )
        distance = jnp.abs(predicted - expected)
        errors = jnp.where(distance < 1.0, 0.5 * jnp.square(distance), distance - 0.5).mean(axis=2)
        return (jnp.where(asked, errors, 0.0).sum(axis=1) / jnp.maximum(asked.sum(axis=1), 1)).mean(), Aux({})

    def update(self, params: Params, state: TaskState, stats: Any, step: Array) -> TaskState:
        """See Task."""
        momentum = ramp(self.momentum, 1.0, step, self.steps)
        return {"teacher": moving_average(state["teacher"], params["backbone"], momentum)}

    def evaluated(self, params: Params, state: TaskState) -> dict[str, Weights]:
        """See Task."""
        return {"": {"params": {**params, "backbone": state["teacher"]}}, "student": {"params": params}}

    def _predictor(self, grid: tuple[int, int]) -> FeaturePredictor:
        return FeaturePredictor(
            self.predictor_width, self.predictor_depth, self.predictor_heads, self.model.width, grid, self.dtype
        )


def _blocks(
    sizes: Rng,
    places: Rng,
    shape: tuple[int, int],
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> Bool[Array, "b k n"]:
    """Return rectangles of one size, each at a random place, as masks; they are smaller than the image."""
    rows, columns = grid
    of_area, of_aspect = jax.random.split(sizes)
    area = jnp.floor(jax.random.uniform(of_area, minval=scale[0], maxval=scale[1]) * rows * columns)
    ratio = jax.random.uniform(of_aspect, minval=aspect[0], maxval=aspect[1])
    height = jnp.clip(jnp.round(jnp.sqrt(area * ratio)), 1, rows - 1)
    width = jnp.clip(jnp.round(jnp.sqrt(area / ratio)), 1, columns - 1)
    of_top, of_left = jax.random.split(places)
    top = jnp.floor(jax.random.uniform(of_top, (*shape, 1, 1)) * (rows - height))
    left = jnp.floor(jax.random.uniform(of_left, (*shape, 1, 1)) * (columns - width))
    row, column = jnp.arange(rows).reshape(1, 1, -1, 1), jnp.arange(columns).reshape(1, 1, 1, -1)
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return inside.reshape(*shape, rows * columns)


def _most(grid: tuple[int, int], scale: float, aspect: tuple[float, float]) -> int:
    """Return an upper bound on the number of patches in a rectangle with rounded sides."""
    area = scale * grid[0] * grid[1]
    sides = max(math.sqrt(a) + 1 / math.sqrt(a) for a in aspect)
    return min(math.floor(area + 0.5 * math.sqrt(area) * sides + 0.25), grid[0] * grid[1])


def _gathered(masks: Bool[Array, "b n"], most: int) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """Return `most` indices of each mask, True ones first, and which of these are True."""
    at = jnp.argsort(~masks, axis=1)[:, :most]
    return at, jnp.take_along_axis(masks, at, axis=1)
