"""The pre-norm transformer block (arXiv:2010.11929, equations 2 and 3)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from vit_jax.layers.attention import Attention
from vit_jax.layers.drop import DropPath
from vit_jax.layers.mlp import Mlp
from vit_jax.types import Tokens


class Block(nn.Module):
    """x + Attention(LN(x)), then x + Mlp(LN(x)).

    Sows its output into the collection "intermediates" as "out" when that is mutable.
    """

    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, deterministic: bool = True) -> Tokens:
        """Tokens [b, n, d] to [b, n, d]."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def residual(branch: Tokens) -> Tokens:
            branch = nn.Dropout(self.dropout)(branch, deterministic=deterministic)
            return DropPath(self.drop_path)(branch, deterministic=deterministic)

        y = nn.LayerNorm(**dtypes, name="norm1")(x)
        x = x + residual(
            Attention(self.num_heads, self.attn_dropout, **dtypes, name="attn")(y, y, deterministic=deterministic)
        )
        y = nn.LayerNorm(**dtypes, name="norm2")(x)
        x = x + residual(Mlp(self.mlp_dim, self.dropout, **dtypes, name="mlp")(y, deterministic=deterministic))
        self.sow("intermediates", "out", x, reduce_fn=lambda _, out: out, init_fn=lambda: None)
        return x
