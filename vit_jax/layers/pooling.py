"""Pooling: from encoded tokens to one vector for the image."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention
from vit_jax.layers.mlp import Gelu, Mlp
from vit_jax.sharding import batch_sharded
from vit_jax.types import Mask, Tokens


def masked_mean(tokens: Tokens, mask: Mask = None) -> Float[Array, "b d"]:
    """Return the mean of the tokens for which `mask` [b, n] is True."""
    if mask is None:
        return tokens.mean(axis=1)
    kept = jnp.where(mask[:, :, None], tokens, jnp.zeros((), tokens.dtype).reshape(1, 1, 1))
    return kept.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1).astype(tokens.dtype)


class AttentionPool(nn.Module):
    """Multi-head attention pooling ("MAP", arXiv:2106.04560): one learned query attends to all tokens, then an MLP."""

    mlp_dim: int
    num_heads: int
    mlp: Gelu = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens, mask: Mask = None) -> Float[Array, "b d"]:
        """Map tokens [b, n, d] to [b, d]; tokens for which `mask` [b, n] is False are ignored."""
        b, _, width = tokens.shape
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width), self.param_dtype)
        queries = batch_sharded(jnp.tile(probe.astype(tokens.dtype), (b, 1, 1)))
        x = batch_sharded(Attention(self.num_heads, **dtypes, name="attn")(queries, tokens, mask))
        y = nn.LayerNorm(self.norm_eps, **dtypes, name="norm")(x)
        return batch_sharded(x + Mlp(self.mlp_dim, kind=self.mlp, **dtypes, name="mlp")(y))[:, 0]
