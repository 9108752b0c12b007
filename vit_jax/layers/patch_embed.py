"""Images to patch tokens (arXiv:2010.11929, equation 1)."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.initial import INITIAL, WeightInit
from vit_jax.layers.ops import linear
from vit_jax.sharding import platform
from vit_jax.types import Images, UserError


def patch_grid(
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    stride: tuple[int, int],
    padding: str,
    source: str = "image",
) -> tuple[int, int]:
    """Return the numbers of rows and columns of patches in an image of (height, width) pixels, or in another `source`.

    Raises UserError if "valid" patches do not tile the image; "same" pads it with zeros to ceil(size / stride).
    """
    if padding == "same":
        return tuple(-(-size // step) for size, step in zip(image_size, stride, strict=True))  # type: ignore[return-value]
    for axis, size, patch, step in zip(("height", "width"), image_size, patch_size, stride, strict=True):
        if size < patch or (size - patch) % step:
            fitting = sorted({max(patch, patch + (size - patch) // step * step + k * step) for k in (0, 1)})
            raise UserError(
                f"The {source} {axis} of {size} pixels cannot be tiled by patches of {patch} pixels every {step}. "
                f"Use a {axis} of {' or '.join(map(str, fitting))}, another patch_size or stride, or padding='same'."
            )
    return tuple((size - patch) // step + 1 for size, patch, step in zip(image_size, patch_size, stride, strict=True))  # type: ignore[return-value]


class PatchEmbed(nn.Module):
    """Linear projection of every patch: a strided convolution; patches overlap if stride < patch_size."""

    width: int
    patch_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str = "valid"
    bias: bool = True
    source: str = "image"
    weight_init: WeightInit = "xavier"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Images | Float[Array, "b n o"]) -> Float[Array, "b rows cols d"] | Float[Array, "b n d"]:
        """Embed images, rows from top to bottom and columns from left to right, or the pixels [b, n, o] of patches."""
        if images.ndim == 3:
            return self._of_patches(images)
        patch_grid((images.shape[1], images.shape[2]), self.patch_size, self.stride, self.padding, self.source)
        shape = (*self.patch_size, images.shape[-1], self.width)
        kernel = self.param("kernel", INITIAL[self.weight_init].patches, shape, self.param_dtype)
        images, kernel = nn.dtypes.promote_dtype(images, kernel, dtype=self.dtype)
        out = convolved(images, kernel, self.stride, self.padding)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
            out = out + bias.astype(out.dtype).reshape(1, 1, 1, -1)
        return out

    def _of_patches(self, pixels: Float[Array, "b n o"]) -> Float[Array, "b n d"]:
        channels, left = divmod(pixels.shape[2], self.patch_size[0] * self.patch_size[1])
        if left or self.stride != self.patch_size or self.padding != "valid":
            raise UserError(
                f"The patches have {pixels.shape[2]} numbers, which are no pixels of model.patch_size={self.patch_size}; give "
                "patchify that size, and leave model.stride and model.padding unset."
            )
        shape = (*self.patch_size, channels, self.width)
        kernel = self.param("kernel", INITIAL[self.weight_init].patches, shape, self.param_dtype)
        pixels, kernel = nn.dtypes.promote_dtype(pixels, kernel, dtype=self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype) if self.bias else None
        return linear(pixels, kernel.reshape(-1, self.width), bias)


def convolved(
    images: Images, kernel: Float[Array, "ph pw c d"], stride: tuple[int, int], padding: str = "valid"
) -> Float[Array, "b rows cols d"]:
    """Convolve images with the kernel of the patches.

    Patches that consist of whole blocks of the size of the stride, or of one block if they do not overlap, are one matrix
    product, which XLA runs faster on CPUs with few input channels. On TPUs it would copy the images in layouts that are
    padded to up to 40 times their size.
    """
    if padding != "valid" or platform() == "tpu" or any(p % s for p, s in zip(kernel.shape[:2], stride, strict=True)):
        return jax.lax.conv_general_dilated(
            images, kernel, stride, padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    sh, sw = stride
    m, n = kernel.shape[0] // sh, kernel.shape[1] // sw
    blocks = rearrange(images, "b (i sh) (j sw) c -> b i j (sh sw c)", sh=sh, sw=sw)
    rows, cols = blocks.shape[1] - m + 1, blocks.shape[2] - n + 1
    patches = jnp.concatenate([blocks[:, i : i + rows, j : j + cols] for i in range(m) for j in range(n)], axis=-1)
    matrix = rearrange(kernel, "(m sh) (n sw) c d -> (m n sh sw c) d", sh=sh, sw=sw)
    return linear(patches, matrix)
