"""The MLP-Mixer (arXiv:2105.01601)."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vit_jax.layers.block import MixerBlock
from vit_jax.layers.drop import DropPathRule
from vit_jax.layers.encoder import Encoder, Remat
from vit_jax.layers.mlp import Gelu
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.models.vit import pair
from vit_jax.types import DtypeName, Images, Logits, UserError


class Mixer(nn.Module):
    """MLP-Mixer: patches, blocks of MLPs across tokens and across channels, global average, linear head.

    The MLPs across tokens fix the number of patches. num_classes=0 gives the pooled features in place of logits. Every
    parameter is param_dtype; every activation dtype, but for statistics, which are float32.
    remat, scan: see Encoder.
    """

    num_classes: int
    width: int
    depth: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    patch_size: int | tuple[int, int]
    mlp: Gelu = "gelu_tanh"
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    drop_path_rule: DropPathRule = "linear"
    head_bias: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "depth", "tokens_mlp_dim", "channels_mlp_dim", "patch_size"):
            size = getattr(self, name)
            if not all(1 <= number < 2**31 for number in pair(size)):
                raise UserError(f"model.{name}={size}; expected numbers of at least 1 and below 2**31.")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"model.drop_path={self.drop_path}; expected a rate in [0, 1).")

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Normalised images [b, h, w, c] to logits [b, num_classes].

        With the collection "intermediates" mutable, sows `tokens` [b, n, d] (embedded), each block's `out`, `encoded`
        [b, n, d], `pooled` and `features` [b, d] (the same). With train=True drop_path draws from the rng "dropout".
        """
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        patch = pair(self.patch_size)
        x = PatchEmbed(self.width, patch, patch, **dtypes, name="embed")(images)
        x = rearrange(x, "b rows cols d -> b (rows cols) d")
        self._sow("tokens", x)
        block = partial(
            MixerBlock, self.tokens_mlp_dim, self.channels_mlp_dim, mlp=self.mlp, norm_eps=self.norm_eps, **dtypes
        )
        encoder = Encoder(
            block,
            self.depth,
            self.drop_path,
            self.drop_path_rule,
            norm_eps=self.norm_eps,
            remat=self.remat,
            scan=self.scan,
            **dtypes,
            name="encoder",
        )
        x = encoder(x, train=train)
        self._sow("encoded", x)
        x = x.mean(axis=1)
        self._sow("pooled", x)
        self._sow("features", x)
        if not self.num_classes:
            return x
        zeros, bias = nn.initializers.zeros, nn.initializers.constant(self.head_bias)
        return nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias, **dtypes, name="head")(x)

    def _sow(self, name: str, x) -> None:
        self.sow("intermediates", name, x, reduce_fn=lambda _, last: last, init_fn=lambda: None)
