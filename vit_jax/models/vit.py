"""The Vision Transformer (arXiv:2010.11929)."""

from typing import Any, Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype

from vit_jax.layers.block import Block
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.pooling import AttentionPool
from vit_jax.layers.posemb import AddPositions
from vit_jax.types import DtypeName, Images, Logits, Tokens, UserError


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Encoder(nn.Module):
    """A stack of pre-norm transformer blocks and a final LayerNorm (equations 2 to 4).

    The rate of stochastic depth grows linearly from 0 in the first block to `drop_path` in the last (arXiv:1603.09382).
    """

    depth: int
    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """Tokens [b, n, d] to [b, n, d]."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            block = Block(
                self.mlp_dim, self.num_heads, self.dropout, self.attn_dropout, rate, **dtypes, name=f"block_{i}"
            )
            x = block(x, deterministic=not train)
        return nn.LayerNorm(**dtypes, name="norm")(x)


class ViT(nn.Module):
    """Vision Transformer: patches, position embeddings, encoder, pooling, linear head.

    pool: "tok" class token, "gap" global average, "map" attention pooling. posemb: "learn", "sincos2d" or "none".
    rep_size adds a tanh layer of that width before the head. num_classes=0 gives the pooled features in place of logits.
    Every parameter is param_dtype; every activation dtype, but for statistics and softmax, which are float32.
    """

    num_classes: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    padding: Literal["valid", "same"] = "valid"
    pool: Literal["tok", "gap", "map"] = "tok"
    posemb: Literal["learn", "sincos2d", "none"] = "learn"
    rep_size: int | None = None
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    head_bias: float = 0.0
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size", "stride", "rep_size"):
            size = getattr(self, name)
            if size is not None and not all(1 <= number < 2**31 for number in pair(size)):
                raise UserError(f"model.{name}={size}; expected numbers of at least 1 and below 2**31.")
        for name in ("dropout", "attn_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}; expected a rate in [0, 1).")

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Normalised images [b, h, w, c] to logits [b, num_classes].

        With the collection "intermediates" mutable, sows `tokens` [b, n, d] (embedded), each block's `out`, `encoded`
        [b, n, d], `pooled` [b, d] and `features` [b, rep_size or d] (what the head sees); with "attention" mutable, each
        block's `weights` [b, heads, n, n]. With train=True dropout draws from the rng "dropout".
        """
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        patch = pair(self.patch_size)
        x = PatchEmbed(self.width, patch, pair(self.stride or patch), self.padding, **dtypes, name="embed")(images)
        grid = (x.shape[1], x.shape[2])
        x = rearrange(x, "b rows cols d -> b (rows cols) d")
        prefix = int(self.pool == "tok")
        if prefix:
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width), dtypes["param_dtype"])
            x = jnp.concatenate([jnp.tile(cls.astype(x.dtype), (x.shape[0], 1, 1)), x], axis=1)
        x = AddPositions(self.posemb, grid, prefix, dtypes["param_dtype"], name="posemb")(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        self._sow("tokens", x)

        x = Encoder(
            self.depth,
            self.mlp_dim,
            self.num_heads,
            self.dropout,
            self.attn_dropout,
            self.drop_path,
            **dtypes,
            name="encoder",
        )(x, train=train)
        self._sow("encoded", x)

        if self.pool == "tok":
            x = x[:, 0]
        elif self.pool == "gap":
            x = x.mean(axis=1)
        else:
            x = AttentionPool(self.mlp_dim, self.num_heads, **dtypes, name="pool")(x)
        self._sow("pooled", x)
        if self.rep_size:
            x = nn.tanh(nn.Dense(self.rep_size, **dtypes, name="rep")(x))
        self._sow("features", x)
        if not self.num_classes:
            return x
        zeros, bias = nn.initializers.zeros, nn.initializers.constant(self.head_bias)
        return nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias, **dtypes, name="head")(x)

    def _sow(self, name: str, x) -> None:
        self.sow("intermediates", name, x, reduce_fn=lambda _, last: last, init_fn=lambda: None)
