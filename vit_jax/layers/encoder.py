"""A stack of residual blocks."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from vit_jax.types import Tokens


class Encoder(nn.Module):
    """`depth` blocks, each made by block(drop_path=..., name=...), and where `norm` is set a final LayerNorm.

    The rate of stochastic depth grows linearly from 0 in the first block to `drop_path` in the last (arXiv:1603.09382).
    """

    block: Callable[..., nn.Module]
    depth: int
    drop_path: float = 0.0
    norm: bool = True
    norm_eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """Tokens [b, n, d] to [b, n, d]."""
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            x = self.block(drop_path=rate, name=f"block_{i}")(x, deterministic=not train)
        if self.norm:
            x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(x)
        return x
