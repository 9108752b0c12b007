"""Heads, which map the pooled features to logits; chosen by `model.head`."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.types import DtypeName, Logits, UserError

KIND = nn.Module


def linear(std: float = 0.0, bias: float = 0.0) -> nn.Module:
    """Return a linear layer with its kernel initialized to a normal distribution or zeros, and its bias to a constant.

    DeiT uses std=0.02; its trunc_normal cuts at 2, which is 100 deviations.
    """
    if std < 0:
        raise UserError(f"model.head.std={std}; expected a number of at least 0.")
    kernel = nn.initializers.normal(std) if std else nn.initializers.zeros
    return nn.Dense(0, kernel_init=kernel, bias_init=nn.initializers.constant(bias))


class BatchNormLinear(nn.Module):
    """A linear layer on features normalised by mean and variance of the batch or, at inference, running averages."""

    features: int
    std: float
    momentum: float
    eps: float
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b d"]) -> Logits:
        """Map features to logits; in training mode if "batch_stats" is mutable."""
        trains = self.is_mutable_collection("batch_stats")
        norm = nn.BatchNorm(
            not trains, momentum=self.momentum, epsilon=self.eps, use_bias=False, use_scale=False, name="norm"
        )
        dtype, param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
        shape = (inputs.shape[-1], self.features)
        kernel: Array = self.param("kernel", nn.initializers.normal(self.std), shape, param_dtype)
        bias: Array = self.param("bias", nn.initializers.zeros, shape[1:], param_dtype)
        return norm(inputs).astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)[None]


def batch_norm_linear(std: float = 0.01, momentum: float = 0.9, eps: float = 1e-6) -> nn.Module:
    """Return a linear layer after a batch norm without scale and bias; MAE's probe (arXiv:2111.06377, appendix A.1)."""
    if std <= 0 or not 0 <= momentum < 1 or eps <= 0:
        raise UserError(
            f"model.head has std={std}, momentum={momentum}, eps={eps}; expected numbers above 0, and a momentum in [0, 1)."
        )
    return BatchNormLinear(0, std, momentum, eps)


def fitted(head: nn.Module, num_classes: int, dtype: DtypeName, param_dtype: DtypeName) -> Any:
    """Return a head for this many classes, in these dtypes, if it has fields for them."""
    given: dict[str, Any] = {
        "features": num_classes,
        "num_classes": num_classes,
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
    return head.clone(**{key: value for key, value in given.items() if hasattr(head, key)})
