"""The two-layer perceptron of a transformer block."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers import ops
from vit_jax.layers.dense import Dense
from vit_jax.layers.initial import INITIAL, WeightInit
from vit_jax.types import Tokens

Gelu = Literal["gelu_tanh", "gelu", "quick_gelu"]
MlpKind = Literal["gelu_tanh", "gelu", "quick_gelu", "swiglu"]

# The tanh form, the exact form and the sigmoid form of arXiv:1606.08415, section 2.
GELUS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": nn.gelu,
    "gelu": partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
    """down(GELU(up(x))), or the gated down(silu(gate(x)) * up(x)) of kind "swiglu" (arXiv:2002.05202, equation 6).

    Dropout is applied to the hidden layer, and with `norm` a LayerNorm after it (arXiv:2210.06423, section 3). Tokens
    are independent.
    """

    hidden: int
    dropout: float = 0.0
    kind: MlpKind = "gelu_tanh"
    norm: bool = False
    norm_eps: float = 1e-6
    weight_init: WeightInit = "xavier"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x: Tokens, *, deterministic: bool = True) -> Tokens:
        """Map tokens [b, n, d] to [b, n, d]."""
        dense: dict[str, Any] = {
            "use_bias": self.bias,
            "kernel_init": INITIAL[self.weight_init].kernel,
            "bias_init": INITIAL[self.weight_init].bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        hidden = checkpoint_name(Dense(self.hidden, **dense, name="up")(x), "hidden")  # for Encoder.remat
        if self.kind == "swiglu":
            gate = checkpoint_name(Dense(self.hidden, **dense, name="gate")(x), "hidden")
            hidden = ops.elementwise(nn.silu, gate) * hidden
        else:
            hidden = ops.elementwise(GELUS[self.kind], hidden)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
        if self.norm:
            norm = nn.LayerNorm(self.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype, name="norm")
            hidden = norm(hidden)
        return Dense(x.shape[-1], **dense, name="down")(hidden)
