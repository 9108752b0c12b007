"""A stem of a few small convolutions in place of large patches (arXiv:2106.14881)."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.conv import FeatureMap
from vit_jax.types import Count, DtypeName, Images, Units, UserError


class ConvStem(nn.Module):
    """Convolutions of 3 x 3 pixels, each with a norm and ReLU; the `stem` of a ViT with patches of 1, the paper's last layer.

    widths, strides: the channels and the stride of each convolution. The norm is a LayerNorm over the channels where the
    paper has batch norm, so that no image depends on others. As the stem of a ViT it takes the ViT's dtypes.
    """

    widths: tuple[Units, ...]
    strides: tuple[Count, ...]
    norm_eps: float = 1e-6
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    def __post_init__(self):
        super().__post_init__()
        if not self.widths or len(self.widths) != len(self.strides) or min(*self.widths, *self.strides) < 1:
            raise UserError(
                f"A ConvStem has widths={self.widths} and strides={self.strides}; expected as many of both, each at least 1."
            )

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the feature map of an image of (height, width) pixels."""
        scale = math.prod(self.strides)
        return -(-image_size[0] // scale), -(-image_size[1] // scale)

    @nn.compact
    def __call__(self, images: Images) -> FeatureMap:
        """Map normalised images [b, h, w, c] to a feature map [b, rows, cols, widths[-1]]."""
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        initial, x = nn.initializers.he_normal(), images
        for i, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            conv = nn.Conv(width, (3, 3), stride, 1, use_bias=False, kernel_init=initial, **dtypes, name=f"conv_{i}")
            x = nn.relu(nn.LayerNorm(self.norm_eps, **dtypes, name=f"norm_{i}")(conv(x)))
        return x
