"""Convolutions of weight-standardised ResNets (BiT, arXiv:1912.11370)."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.types import Images

WeightNorm = Literal["std", "var"]
FeatureMap = Float[Array, "b rows cols d"]


def standardize(
    kernel: Float[Array, "kh kw c d"], norm: WeightNorm = "std", eps: float = 1e-5
) -> Float[Array, "kh kw c d"]:
    """Return a kernel with mean 0 and variance 1 for each output channel, in float32 (arXiv:1903.10520, equation 10).

    The divisor is std + eps, or with norm="var" sqrt(variance + eps).
    """
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    kernel = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = jnp.square(kernel).mean(axis=(0, 1, 2), keepdims=True)
    return kernel / (jnp.sqrt(variance) + eps if norm == "std" else jnp.sqrt(variance + eps))


class StdConv(nn.Module):
    """A convolution without bias whose kernel is standardised; the output has ceil(size / stride) rows and columns."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    weight_norm: WeightNorm = "std"
    weight_eps: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> FeatureMap:
        """Map images [b, h, w, c] to [b, ceil(h / stride), ceil(w / stride), features]."""
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        kernel = standardize(kernel, self.weight_norm, self.weight_eps).astype(self.dtype)
        return jax.lax.conv_general_dilated(
            images.astype(self.dtype),
            kernel,
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Bottleneck(nn.Module):
    """x + GN(conv1x1(conv3x3(conv1x1(x)))) with a GroupNorm and a ReLU after each convolution, the last after the sum.

    The output has 4 * features channels; if its shape differs from x, the shortcut is a 1x1 convolution.
    """

    features: int
    stride: int = 1
    norm_eps: float = 1e-6
    weight_norm: WeightNorm = "std"
    weight_eps: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> FeatureMap:
        """Map feature maps [b, h, w, c] to [b, ceil(h / stride), ceil(w / stride), 4 * features]."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv(x: Images, features: int, kernel: int, stride: int, name: str, **init: Any) -> FeatureMap:
            weights = (self.weight_norm, self.weight_eps)
            y = StdConv(features, kernel, stride, *weights, **dtypes, name=f"conv{name}")(x)
            return nn.GroupNorm(epsilon=self.norm_eps, **init, **dtypes, name=f"norm{name}")(y)

        shortcut = x
        if x.shape[-1] != 4 * self.features or self.stride != 1:
            shortcut = conv(x, 4 * self.features, 1, self.stride, "_proj")
        x = nn.relu(conv(x, self.features, 1, 1, "1"))
        x = nn.relu(conv(x, self.features, 3, self.stride, "2"))
        x = conv(x, 4 * self.features, 1, 1, "3", scale_init=nn.initializers.zeros)
        return nn.relu(shortcut + x)


class Stage(nn.Module):
    """`units` bottleneck units; the first has the stride."""

    unit: Callable[..., Bottleneck]
    units: int
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Images) -> FeatureMap:
        """Map feature maps [b, h, w, c] to [b, ceil(h / stride), ceil(w / stride), 4 * features]."""
        for j in range(self.units):
            x = self.unit(self.features, self.stride if j == 0 else 1, name=f"unit_{j}")(x)
        return x
