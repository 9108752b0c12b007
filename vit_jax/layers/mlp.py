"""The two-layer perceptron of a transformer block."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from vit_jax.types import Tokens


class Mlp(nn.Module):
    """Dense, GELU (tanh form), dropout, dense; applied to every token alike."""

    hidden: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, deterministic: bool = True) -> Tokens:
        """Tokens [b, n, d] to [b, n, d]."""
        dense: dict[str, Any] = {
            "kernel_init": nn.initializers.xavier_uniform(),
            "bias_init": nn.initializers.normal(1e-6),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        width = x.shape[-1]
        x = nn.gelu(nn.Dense(self.hidden, **dense, name="up")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return nn.Dense(width, **dense, name="down")(x)
