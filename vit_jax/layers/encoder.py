"""A stack of residual blocks."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from vit_jax.layers.drop import DropPathRule, drop_path_rates
from vit_jax.types import Tokens


class Encoder(nn.Module):
    """`depth` blocks, each made by block(drop_path=..., name=...), and where `norm` is set a final LayerNorm.

    drop_path, drop_path_rule: see drop_path_rates.
    """

    block: Callable[..., nn.Module]
    depth: int
    drop_path: float = 0.0
    drop_path_rule: DropPathRule = "linear"
    norm: bool = True
    norm_eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """Tokens [b, n, d] to [b, n, d]."""
        for i, rate in enumerate(drop_path_rates(self.drop_path, self.depth, self.drop_path_rule)):
            x = self.block(drop_path=rate, name=f"block_{i}")(x, deterministic=not train)
        if self.norm:
            x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(x)
        return x
