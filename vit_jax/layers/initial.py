"""Weight initializers of the reference implementations."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from flax import linen as nn

WeightInit = Literal["xavier", "lecun", "trunc_normal", "mae"]


class Initial(NamedTuple):
    """Initializers for linear kernels, MLP biases, the class token and the kernel [h, w, c, d] of the patches."""

    kernel: Callable[..., Any]
    bias: Callable[..., Any]
    token: Callable[..., Any]
    patches: Callable[..., Any]


_LECUN = nn.initializers.lecun_normal(in_axis=(0, 1, 2))
# The initialization of torch's convolutions: uniform in +-1 / sqrt(h w c).
_TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=(0, 1, 2))
_XAVIER = nn.initializers.xavier_uniform()
_XAVIER_PATCHES = nn.initializers.xavier_uniform(in_axis=(0, 1, 2))
# "xavier": the original ViT and big_vision. "lecun": the MLP-Mixer in both. "trunc_normal": DeiT and DeiT-III, whose
# normal distribution is cut at 100 deviations. "mae": facebookresearch/mae, in which the patch embedding is a linear
# layer.
INITIAL: dict[str, Initial] = {
    "xavier": Initial(_XAVIER, nn.initializers.normal(1e-6), nn.initializers.zeros, _LECUN),
    "lecun": Initial(nn.initializers.lecun_normal(), nn.initializers.zeros, nn.initializers.zeros, _LECUN),
    "trunc_normal": Initial(nn.initializers.normal(0.02), nn.initializers.zeros, nn.initializers.normal(0.02), _TORCH),
    "mae": Initial(_XAVIER, nn.initializers.zeros, nn.initializers.normal(0.02), _XAVIER_PATCHES),
}
