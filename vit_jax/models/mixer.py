"""The MLP-Mixer (arXiv:2105.01601)."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.block import MixerBlock
from vit_jax.layers.drop import DropPathRule
from vit_jax.layers.encoder import Encoder, Remat
from vit_jax.layers.mlp import Gelu
from vit_jax.layers.patch_embed import PatchEmbed, patch_grid
from vit_jax.models import heads
from vit_jax.models.sizes import FromVariant
from vit_jax.models.vit import BLOCK, pair
from vit_jax.types import Classes, Count, DtypeName, Images, Logits, Tokens, Units, UserError


class Mixer(FromVariant, nn.Module):
    """MLP-Mixer: patches, blocks of MLPs across tokens and across channels, global average, linear head.

    The MLPs across tokens fix the number of patches. num_classes=0 returns the pooled features instead of logits. All
    parameters have param_dtype, and all activations dtype, except statistics, which are float32. remat, scan: see
    Encoder; scale_by_keep: see DropPath. head: a module of models/heads.py; by default a linear layer initialized to
    zeros with the bias head_bias. Weights are initialized with lecun_normal, and biases with zeros.
    """

    num_classes: Classes
    width: Units
    depth: Count
    tokens_mlp_dim: Units
    channels_mlp_dim: Units
    patch_size: Units | tuple[Units, Units]
    mlp: Gelu = "gelu_tanh"
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    drop_path_rule: DropPathRule = "linear"
    scale_by_keep: bool = True
    head: nn.Module | None = None
    head_bias: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    def __post_init__(self):
        if self.head is not None:
            self.head = heads.fitted(self.head, self.num_classes, self.dtype, self.param_dtype)
        super().__post_init__()
        for name in ("width", "depth", "tokens_mlp_dim", "channels_mlp_dim", "patch_size"):
            size = getattr(self, name)
            if not all(1 <= number < 2**31 for number in pair(size)):
                raise UserError(f"model.{name}={size}; expected numbers of at least 1 and below 2**31.")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"model.drop_path={self.drop_path}; expected a rate in [0, 1).")

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of patches for (height, width) in pixels; UserError if they do not tile the image."""
        patch = pair(self.patch_size)
        return patch_grid(image_size, patch, patch, "valid")

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 before the first block, 1 + i for block i, depth + 1 after the last."""
        block = BLOCK.search(name)
        return 1 + int(block[1]) if block else 0 if name.startswith("embed/") else self.depth + 1

    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Map normalised images [b, h, w, c] to logits [b, num_classes].

        If the collection "intermediates" is mutable, sows `tokens` [b, n, d] (embedded), each block's `out`, `encoded`
        [b, n, d], `pooled` and `features` [b, d] (the same). With train=True drop_path draws from the rng "dropout".
        """
        x = self.encode(self.embed(images), train=train)
        return self.apply_head(x.mean(axis=1))

    def features(self, images: Images, *, train: bool = False, norm_stages: bool = False) -> dict[str, Any]:
        """Return `tokens` [b, n, d] of the patches of `grid`, `pooled` [b, d], and `stages`, the tokens after each block.

        norm_stages: see Encoder.
        """
        encoded, stages = self.encode(self.embed(images), train=train, stages=True, norm_stages=norm_stages)
        grid = self.grid((images.shape[1], images.shape[2]))
        return {"tokens": encoded, "grid": grid, "prefix": 0, "pooled": encoded.mean(axis=1), "stages": stages}

    @property
    def _dtypes(self) -> dict[str, Any]:
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

    @nn.compact
    def embed(self, images: Images) -> Tokens:
        """Map images to embedded patches [b, n, d]."""
        patch = pair(self.patch_size)
        x = PatchEmbed(self.width, patch, patch, **self._dtypes, name="embed")(images)
        x = rearrange(x, "b rows cols d -> b (rows cols) d")
        self._sow("tokens", x)
        return x

    @nn.compact
    def encode(self, tokens: Tokens, *, train: bool = False, stages: bool = False, norm_stages: bool = False) -> Any:
        """Map tokens [b, n, d] to encoded tokens; with `stages` also return the tokens after each block."""
        sizes = (self.tokens_mlp_dim, self.channels_mlp_dim)
        block = partial(
            MixerBlock, *sizes, mlp=self.mlp, norm_eps=self.norm_eps, scale_by_keep=self.scale_by_keep, **self._dtypes
        )
        encoder = Encoder(
            block,
            self.depth,
            self.drop_path,
            self.drop_path_rule,
            norm_eps=self.norm_eps,
            remat=self.remat,
            scan=self.scan,
            **self._dtypes,
            name="encoder",
        )
        if stages:
            return encoder(tokens, train=train, stages=True, norm_stages=norm_stages)
        x = encoder(tokens, train=train)
        self._sow("encoded", x)
        return x

    @nn.compact
    def apply_head(self, pooled: Float[Array, "b d"]) -> Logits:
        """Map pooled features to logits [b, num_classes], or return them without classes."""
        self._sow("pooled", pooled)
        self._sow("features", pooled)
        if not self.num_classes:
            return pooled
        if self.head is not None:
            return self.head(pooled)
        zeros, bias = nn.initializers.zeros, nn.initializers.constant(self.head_bias)
        return nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias, **self._dtypes, name="head")(pooled)

    def _sow(self, name: str, x) -> None:
        self.sow("intermediates", name, x, reduce_fn=lambda _, last: last, init_fn=lambda: None)
