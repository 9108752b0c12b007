"""Masked autoencoding: reconstruct the pixels of masked patches from the visible ones (MAE, arXiv:2111.06377)."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from vit_jax.layers.block import Block
from vit_jax.layers.encoder import Encoder
from vit_jax.layers.mlp import Gelu
from vit_jax.layers.posemb import sincos2d
from vit_jax.tasks.masks import check_ratio
from vit_jax.tasks.pretraining import Pretraining, need_tiles, patch_pixels
from vit_jax.tasks.task import Aux, Batch, Scale, Spec, TaskState, stream
from vit_jax.types import Count, Images, Params, Rng, Sincos, Tokens, Units, UserError


class PixelDecoder(nn.Module):
    """A light transformer on all tokens: the encoded visible ones, and a learned mask token for every masked patch."""

    width: int
    depth: int
    num_heads: int
    outputs: int
    grid: tuple[int, int]
    prefix: int
    mlp: Gelu
    posemb: Sincos
    norm_eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, visible: Tokens, restore: Int[Array, "b patches"]) -> Float[Array, "b patches o"]:
        """Predict the pixels of every patch from the visible tokens; restore: each patch's place in the shuffled order."""
        x = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="embed")(visible)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        masked = jnp.tile(mask_token.astype(self.dtype), (len(x), restore.shape[1] + self.prefix - x.shape[1], 1))
        shuffled = jnp.concatenate([x[:, self.prefix :], masked], axis=1)
        positions = sincos2d(*self.grid, self.width, kind=self.posemb)
        patches = jnp.take_along_axis(shuffled, restore[:, :, None], axis=1) + positions[None]
        x = jnp.concatenate([x[:, : self.prefix], patches.astype(self.dtype)], axis=1)
        options: dict[str, Any] = {"norm_eps": self.norm_eps, "dtype": self.dtype}
        block = partial(Block, 4 * self.width, self.num_heads, mlp=self.mlp, **options)
        x = Encoder(block, self.depth, **options, name="encoder")(x, train=True)
        dense = nn.Dense(self.outputs, kernel_init=nn.initializers.xavier_uniform(), name="pixels")
        return dense(x[:, self.prefix :])


@dataclasses.dataclass(frozen=True)
class Mae(Pretraining):
    """Minimise the mean squared error of masked patches (section 3, "Reconstruction target"), with a network in stages.

    The patches of a network such as vit.ViT are dropped between its `embed` and `encode`, which sees (1 - mask_ratio)
    of them. With norm_pixels each target patch has mean 0 and variance 1. The paper's decoder has depth 8, width 512
    and decoder_posemb "sincos2d_mae"; its GELU and its norms' epsilon are the network's.
    """

    mean: Scale = 0.5
    std: Scale = 0.5
    mask_ratio: float = 0.75
    decoder_width: Units = 512
    decoder_depth: Count = 8
    decoder_heads: Count = 16
    decoder_posemb: Sincos = "sincos2d"
    norm_pixels: bool = True
    decomposable = True

    def __post_init__(self):
        super().__post_init__()
        check_ratio("mask_ratio", self.mask_ratio)
        self.need_stages()

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        images = jnp.zeros((1, *spec["image"].shape))
        need_tiles("Mae", self.model, spec["image"].shape)
        visible, restore = jnp.zeros((1, self.model.num_prefix + 1, self.model.width)), self._order(rng, images)
        decoder = self._decoder(images).init(stream(rng, "decoder"), visible, jnp.argsort(restore, axis=1))
        return {"backbone": self.init_backbone(rng, spec["image"].shape), "decoder": decoder["params"]}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; draws a random order of the patches; the first ones are visible."""
        return {"image": batch["image"], "order": self._order(stream(rng, "mask"), batch["image"])}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task."""
        predicted, masked = self.reconstruct(params, batch, rng)
        errors = jnp.square(predicted - self.targets(self.normalize(batch["image"]))).mean(axis=2)
        return jnp.mean(errors, axis=1, where=masked).mean(), Aux({})

    def reconstruct(
        self, params: Params, batch: Batch, rng: Rng
    ) -> tuple[Float[Array, "b patches o"], Bool[Array, "b patches"]]:
        """Return the predicted pixels of every patch of a prepared batch, and which patches are masked."""
        images, order = self.normalize(batch["image"]), batch["order"]
        kept, prefix = round((1 - self.mask_ratio) * order.shape[1]), self.model.num_prefix
        grid = self.model.grid(images.shape[1:3])

        def encode_visible(model: nn.Module, images: Images) -> Tokens:
            tokens = model.embed(images, train=True)
            patches = jnp.take_along_axis(tokens[:, prefix:], order[:, :kept, None], axis=1)
            visible = jnp.concatenate([tokens[:, :prefix], patches], axis=1)
            return model.encode(visible, grid=grid, kept=order[:, :kept], train=True)

        visible = self.model.apply({"params": params["backbone"]}, images, method=encode_visible, rngs={"dropout": rng})
        restore = jnp.argsort(order, axis=1)
        predicted: Any = self._decoder(images).apply({"params": params["decoder"]}, visible, restore)
        return predicted.astype(jnp.float32), restore >= kept

    def targets(self, images: Images) -> Float[Array, "b patches o"]:
        """Return the pixels of each patch, row by row, normalised within the patch if norm_pixels is set."""
        patches = patch_pixels(images, self.model.grid(images.shape[1:3]))
        if not self.norm_pixels:
            return patches
        mean, variance = patches.mean(axis=2, keepdims=True), patches.var(axis=2, keepdims=True, ddof=1)
        return (patches - mean) / jnp.sqrt(variance + 1e-6)

    def _order(self, rng: Rng, images: Array) -> Int[Array, "b patches"]:
        """Return a random order of the patches of each image."""
        rows, columns = self.model.grid(images.shape[1:3])
        kept = round((1 - self.mask_ratio) * rows * columns)
        if not 0 < kept < rows * columns:
            raise UserError(
                f"task.mask_ratio={self.mask_ratio} of {rows} x {columns} patches leaves {kept} visible; expected at least one "
                "visible and one masked patch: use another mask_ratio, a smaller model.patch_size or larger images."
            )
        return jnp.argsort(jax.random.uniform(rng, (len(images), rows * columns)), axis=1)

    def _decoder(self, images: Array) -> PixelDecoder:
        grid = self.model.grid(images.shape[1:3])
        outputs = images.shape[1] * images.shape[2] * images.shape[3] // (grid[0] * grid[1])
        sizes = (self.decoder_width, self.decoder_depth, self.decoder_heads)
        mlp: Gelu = "gelu" if getattr(self.model, "mlp", None) == "gelu" else "gelu_tanh"
        epsilon = getattr(self.model, "norm_eps", 1e-6)
        return PixelDecoder(*sizes, outputs, grid, self.model.num_prefix, mlp, self.decoder_posemb, epsilon, self.dtype)
