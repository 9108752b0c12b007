"""Images to patch tokens (arXiv:2010.11929, equation 1)."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.types import Images, UserError


def patch_grid(
    image_size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int], padding: str
) -> tuple[int, int]:
    """Rows and columns of patches that an image of (height, width) pixels gives.

    Raises UserError where "valid" patches do not tile the image; "same" pads it with zeros to ceil(size / stride).
    """
    if padding == "same":
        return tuple(-(-size // step) for size, step in zip(image_size, stride, strict=True))  # type: ignore[return-value]
    for axis, size, patch, step in zip(("height", "width"), image_size, patch_size, stride, strict=True):
        if size < patch or (size - patch) % step:
            fitting = sorted({max(patch, patch + (size - patch) // step * step + k * step) for k in (0, 1)})
            raise UserError(
                f"The image {axis} of {size} pixels cannot be tiled by patches of {patch} pixels every {step}. "
                f"Use a {axis} of {' or '.join(map(str, fitting))}, another patch_size or stride, or padding='same'."
            )
    return tuple((size - patch) // step + 1 for size, patch, step in zip(image_size, patch_size, stride, strict=True))  # type: ignore[return-value]


class PatchEmbed(nn.Module):
    """Linear projection of every patch: a strided convolution; patches overlap where stride < patch_size."""

    width: int
    patch_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str = "valid"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "b rows cols d"]:
        """Rows run from top to bottom, columns from left to right."""
        patch_grid((images.shape[1], images.shape[2]), self.patch_size, self.stride, self.padding)
        shape = (*self.patch_size, images.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        if self.stride == self.patch_size and self.padding == "valid":
            # The same sum as one matrix product, which XLA runs faster than a convolution with few input channels.
            ph, pw = self.patch_size
            patches = rearrange(images, "b (i ph) (j pw) c -> b i j (ph pw c)", ph=ph, pw=pw)
            out = patches @ kernel.reshape(-1, self.width)
        else:
            out = jax.lax.conv_general_dilated(
                images, kernel, self.stride, self.padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return out + bias.reshape(1, 1, 1, -1)
