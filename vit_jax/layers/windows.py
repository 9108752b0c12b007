"""Window attention and patch merging: the blocks of the Swin Transformer (arXiv:2103.14030, arXiv:2111.09883)."""

import functools
import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.layers import attend, ops
from vit_jax.layers.dense import Dense
from vit_jax.layers.drop import DropPath, Rate
from vit_jax.layers.initial import INITIAL
from vit_jax.layers.mlp import Mlp
from vit_jax.sharding import batch_sharded
from vit_jax.types import Tokens

Map = Float[Array, "b h w c"]
Coarser = Float[Array, "b rows cols d"]
Version = Literal[1, 2]
KERNEL = INITIAL["trunc_normal"].kernel


@functools.cache
def relative_places(window: int, side: tuple[int, int]) -> np.ndarray:
    """Return the row in a table of (2 window - 1)^2 offsets for pairs of places in a window of `side`, int [n, n]."""
    rows, columns = np.mgrid[: side[0], : side[1]].reshape(2, -1)
    down, right = rows[:, None] - rows[None] + window - 1, columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + right


@functools.cache
def shift_regions(size: tuple[int, int], side: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """Return the regions [windows, n] of the tokens in windows of a rolled map: numbers of parts that are adjacent in it."""
    regions = np.zeros(size, np.int32)
    for axis, (length, window, by) in enumerate(zip(size, side, shift, strict=True)):
        at = np.arange(length)
        region = (at >= length - window).astype(np.int32) + (at >= length - by) * (by > 0)
        regions = regions * 3 + (region[:, None] if axis == 0 else region[None])
    return rearrange(regions, "(i p) (j q) -> (i j) (p q)", p=side[0], q=side[1])


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias for each offset.

    Version 2 uses cosines instead of products, times a learned factor of at most 100, and its biases come from an MLP
    on the logarithms of the offsets in units of trained_window (by default the window), so that windows can change
    (sections 3.2, 3.3).
    """

    num_heads: int
    window: int
    trained_window: int = 0
    version: Version = 1
    qkv_bias: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Tokens, side: tuple[int, int], regions: Int[Array, "windows n"] | None, *, deterministic: bool = True
    ) -> Tokens:
        """Map tokens [b * windows, n, d] of windows of `side`; regions: see shift_regions, if shifted.

        On TPUs version 1 runs as a kernel, where no weights are dropped or inspected.
        """
        width = x.shape[-1]
        head = (self.num_heads, width // self.num_heads)
        options: dict[str, Any] = {"kernel_init": KERNEL, "dtype": self.dtype, "param_dtype": self.param_dtype}

        def project(name: str) -> Float[Array, "b n k h"]:
            use_bias = self.qkv_bias and not (self.version == 2 and name == "key")
            return Dense(head, use_bias=use_bias, **options, name=name)(x)

        q, k, v = project("query"), project("key"), project("value")
        shows = self.is_mutable_collection("attention") and not self.is_initializing()
        whole = self.version == 1 and not shows and (deterministic or not self.dropout)
        bias = self._offset_bias(side)
        if attend.choose("auto", x.shape[1], whole, bias) == "pallas":
            mixed = attend.pallas(q, k, v, bias=bias, regions=regions)
        else:
            weights = ops.softmax(self._scores(q.swapaxes(1, 2), k.swapaxes(1, 2), bias, regions), v.dtype)
            if shows:
                self.sow("attention", "weights", weights, reduce_fn=lambda _, w: w, init_fn=lambda: None)
            weights = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
            mixed = attend.weighted_values(weights, v)
        return Dense(width, inputs=2, **options, name="out")(mixed)

    def _scores(
        self,
        q: Float[Array, "b k n h"],
        k: Float[Array, "b k n h"],
        bias: Float[Array, "k n n"],
        regions: Int[Array, "windows n"] | None,
    ) -> Float[Array, "b k n n"]:
        if self.version == 1:
            scores = ops.matmul(q / jnp.asarray(math.sqrt(q.shape[-1]), q.dtype), k, jnp.float32, transposed=True)
        else:
            log10 = nn.initializers.constant(math.log(10.0))
            scale = self.param("logit_scale", log10, (self.num_heads, 1, 1), self.param_dtype)
            q, k = (_unit(a.astype(jnp.float32)) for a in (q, k))
            factor = jnp.exp(jnp.minimum(scale.astype(jnp.float32), math.log(100.0)))
            scores = ops.matmul(q, k, jnp.float32, transposed=True) * factor.reshape(1, -1, 1, 1)
        scores = scores + bias[None]
        if regions is None:
            return scores
        apart = jnp.where(regions[:, :, None] == regions[:, None], 0.0, -100.0)
        scores = rearrange(scores, "(b w) k q n -> b w k q n", w=len(regions)) + apart[None, :, None]
        return rearrange(scores, "b w k q n -> (b w) k q n")

    def _offset_bias(self, side: tuple[int, int]) -> Float[Array, "k n n"]:
        places = relative_places(self.window, side)
        if self.version == 1:
            shape = ((2 * self.window - 1) ** 2, self.num_heads)
            table: Array = self.param("offset_bias", KERNEL, shape, self.param_dtype)
        else:
            offsets = np.mgrid[1 - self.window : self.window, 1 - self.window : self.window].reshape(2, -1).T
            scaled = 8.0 * offsets / max((self.trained_window or self.window) - 1, 1)
            logs = jnp.asarray(np.sign(scaled) * np.log2(np.abs(scaled) + 1.0) / 3.0, jnp.float32)
            dense = {"kernel_init": KERNEL, "param_dtype": self.param_dtype}
            hidden = nn.relu(nn.Dense(512, **dense, name="offset_up")(logs))
            table = 16.0 * nn.sigmoid(nn.Dense(self.num_heads, use_bias=False, **dense, name="offset_down")(hidden))
        return rearrange(table.astype(jnp.float32)[places], "q n k -> k q n")


class SwinBlock(nn.Module):
    """Window attention and an MLP; version 1 normalises before each branch, version 2 after it (section 3.1)."""

    num_heads: int
    window: int
    shifted: bool
    trained_window: int = 0
    version: Version = 1
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: Rate = 0.0
    norm_eps: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map, *, deterministic: bool = True) -> Map:
        """Map [b, h, w, c] to the same shape; zeros pad maps that windows do not tile, at right and bottom."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        b, height, width, channels = x.shape
        norm1, norm2 = (nn.LayerNorm(self.norm_eps, **dtypes, name=name) for name in ("norm1", "norm2"))
        attention = WindowAttention(
            self.num_heads, self.window, self.trained_window, self.version, self.qkv_bias, self.attn_dropout, **dtypes,
            name="attn",
        )  # fmt: skip
        mlp = Mlp(
            int(channels * self.mlp_ratio), self.dropout, "gelu", weight_init="trunc_normal", **dtypes, name="mlp"
        )

        dropout = functools.partial(nn.Dropout(self.dropout), deterministic=deterministic)

        def among_windows(x: Map) -> Map:
            smallest = min(height, width)
            window = min(self.window, smallest)
            by = window // 2 if self.shifted and smallest > self.window else 0
            size = (-(-height // window) * window, -(-width // window) * window)
            x = jnp.pad(x, ((0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0)))
            x = jnp.roll(x, (-by, -by), (1, 2)) if by else x
            side, rows = (window, window), size[0] // window
            tokens = rearrange(x, "b (i p) (j q) c -> (b i j) (p q) c", p=window, q=window)
            regions = jnp.asarray(shift_regions(size, side, (by, by))) if by else None
            tokens = dropout(attention(tokens, side, regions, deterministic=deterministic))
            x = rearrange(tokens, "(b i j) (p q) c -> b (i p) (j q) c", b=b, i=rows, p=window)
            x = jnp.roll(x, (by, by), (1, 2)) if by else x
            return x[:, :height, :width]

        def dropped(x: Map) -> Map:
            flat = DropPath(self.drop_path)(x.reshape(b, -1, channels), deterministic=deterministic)
            return flat.reshape(x.shape)

        def perceptron(x: Map) -> Map:
            return dropout(mlp(x.reshape(b, -1, channels), deterministic=deterministic)).reshape(x.shape)

        if self.version == 1:
            x = x + dropped(among_windows(norm1(x)))
            x = x + dropped(perceptron(norm2(x)))
        else:
            x = x + dropped(norm1(among_windows(x)))
            x = x + dropped(norm2(perceptron(x)))
        self.sow("intermediates", "out", x, reduce_fn=lambda _, out: out, init_fn=lambda: None)
        return batch_sharded(x)


class Merge(nn.Module):
    """Merge four neighbours into one token of twice the width; odd edges are padded with zeros."""

    version: Version = 1
    norm_eps: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Coarser:
        """Map [b, h, w, c] to [b, ceil(h / 2), ceil(w / 2), 2 c]."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        width = 2 * x.shape[-1]
        x = rearrange(x, "b (i p) (j q) c -> b i j (q p c)", p=2, q=2)
        norm = nn.LayerNorm(self.norm_eps, **dtypes, name="norm")
        reduce = Dense(width, use_bias=False, kernel_init=KERNEL, **dtypes, name="reduce")
        return reduce(norm(x)) if self.version == 1 else norm(reduce(x))


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
