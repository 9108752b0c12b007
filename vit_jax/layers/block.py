"""Residual blocks: of transformers (arXiv:2010.11929, equations 2 and 3) and of Mixers (arXiv:2105.01601, equation 1)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from vit_jax.layers.attend import Form
from vit_jax.layers.attention import Attention, QkvBias
from vit_jax.layers.drop import DropPath, Rate
from vit_jax.layers.geometry import Geometry
from vit_jax.layers.initial import WeightInit
from vit_jax.layers.mlp import Gelu, Mlp, MlpKind
from vit_jax.layers.rope import Rope
from vit_jax.types import Mask, Tokens, UserError


class LayerScale(nn.Module):
    """A learned factor per channel of a residual branch (arXiv:2103.17239, equation 4), initialized to `initial`."""

    initial: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, branch: Tokens) -> Tokens:
        """Map tokens [b, n, d] to [b, n, d]."""
        initial = nn.initializers.constant(self.initial)
        scale = self.param("scale", initial, branch.shape[-1:], self.param_dtype)
        return branch * scale.astype(self.dtype).reshape(1, 1, -1)


class Block(nn.Module):
    """x + Attention(LN(x)), then x + Mlp(LN(x)); with LayerScale on each branch if `layer_scale` is given.

    post_norm: x + LN(Attention(x)), then x + LN(Mlp(x)), as in the largest EVA models (arXiv:2303.15389, section 2.2).
    attn_norm, mlp_norm: the `norm` of Attention and of Mlp. Sows its output as "out" into the collection
    "intermediates" if it is mutable.
    """

    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: Rate = 0.0
    mlp: MlpKind = "gelu_tanh"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    qkv_bias: QkvBias = True
    layer_scale: float | None = None
    attention: Form = "auto"
    attn_norm: bool = False
    mlp_norm: bool = False
    post_norm: bool = False
    rope: Rope | None = None
    scale_by_keep: bool = True
    weight_init: WeightInit = "xavier"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Tokens, mask: Mask = None, geometry: Geometry | None = None, *, deterministic: bool = True
    ) -> Tokens:
        """Map tokens [b, n, d] to [b, n, d]; no token attends to tokens for which `mask` [b, n] is False."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def residual(branch: Tokens, name: str) -> Tokens:
            branch = nn.Dropout(self.dropout)(branch, deterministic=deterministic)
            if self.layer_scale is not None:
                branch = LayerScale(self.layer_scale, **dtypes, name=name)(branch)
            return DropPath(self.drop_path, self.scale_by_keep)(branch, deterministic=deterministic)

        fields = (self.num_heads, self.attn_dropout, self.qk_norm, self.qkv_bias, self.norm_eps, self.attention)
        attention = Attention(*fields, self.attn_norm, self.rope, self.weight_init, **dtypes, name="attn")
        mlp_fields = (self.mlp_dim, self.dropout, self.mlp, self.mlp_norm, self.norm_eps, self.weight_init)
        mlp = Mlp(*mlp_fields, **dtypes, name="mlp")
        norm1, norm2 = (nn.LayerNorm(self.norm_eps, **dtypes, name=name) for name in ("norm1", "norm2"))
        if self.post_norm:
            y = norm1(attention(x, x, mask, geometry, deterministic=deterministic))
            x = x + residual(y, "layer_scale1")
            x = x + residual(norm2(mlp(x, deterministic=deterministic)), "layer_scale2")
        else:
            y = norm1(x)
            x = x + residual(attention(y, y, mask, geometry, deterministic=deterministic), "layer_scale1")
            x = x + residual(mlp(norm2(x), deterministic=deterministic), "layer_scale2")
        self.sow("intermediates", "out", x, reduce_fn=lambda _, out: out, init_fn=lambda: None)
        return x


class MixerBlock(nn.Module):
    """An MLP across the tokens, shared by all channels, then an MLP across the channels, shared by all tokens.

    Sows its output as "out" into the collection "intermediates" if it is mutable.
    """

    tokens_mlp_dim: int
    channels_mlp_dim: int
    drop_path: Rate = 0.0
    mlp: Gelu = "gelu_tanh"
    norm_eps: float = 1e-6
    scale_by_keep: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, mask: Mask = None, *, deterministic: bool = True) -> Tokens:
        """Map tokens [b, n, d] to [b, n, d]; raises UserError for a mask, since tokens are mixed by fixed weights."""
        if mask is not None:
            raise UserError("A Mixer mixes all tokens by fixed weights, so none can be masked; use a vit.ViT.")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        drop = DropPath(self.drop_path, self.scale_by_keep)
        y = nn.LayerNorm(self.norm_eps, **dtypes, name="norm1")(x).swapaxes(1, 2)
        y = Mlp(self.tokens_mlp_dim, kind=self.mlp, weight_init="lecun", **dtypes, name="tokens")(y).swapaxes(1, 2)
        x = x + drop(y, deterministic=deterministic)
        y = nn.LayerNorm(self.norm_eps, **dtypes, name="norm2")(x)
        y = Mlp(self.channels_mlp_dim, kind=self.mlp, weight_init="lecun", **dtypes, name="channels")(y)
        x = x + drop(y, deterministic=deterministic)
        self.sow("intermediates", "out", x, reduce_fn=lambda _, out: out, init_fn=lambda: None)
        return x
