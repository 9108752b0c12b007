"""Linear layers."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array

from vit_jax.layers import ops


class Dense(nn.Module):
    """A linear layer from the last `inputs` dimensions to `features`, with the parameters of flax's DenseGeneral."""

    features: int | tuple[int, ...]
    inputs: int = 1
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., *inputs] to [..., *features]."""
        outputs = (self.features,) if isinstance(self.features, int) else self.features
        shape = (*x.shape[x.ndim - self.inputs :], *outputs)
        kernel = self.param("kernel", self._kernel, shape, self.param_dtype)
        bias = self.param("bias", self._bias, outputs, self.param_dtype) if self.use_bias else None
        return ops.linear(x.astype(self.dtype), kernel, bias, self.inputs)

    def _kernel(self, rng: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
        flat = math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])
        return self.kernel_init(rng, flat, dtype).reshape(shape)

    def _bias(self, rng: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
        return self.bias_init(rng, (math.prod(shape),), dtype).reshape(shape)
