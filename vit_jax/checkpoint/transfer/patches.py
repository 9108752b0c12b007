"""Resize parameters to another image size, patch size or number of channels."""

import numpy as np
from jaxtyping import Float

from vit_jax.layers.resize import resize_grid, resize_matrix
from vit_jax.types import PatchMethod, PosembMethod, UserError

Grid = tuple[int, int]


def resize_posemb(
    table: Float[np.ndarray, "1 n d"], old_grid: Grid, new_grid: Grid, prefix: int, method: PosembMethod
) -> Float[np.ndarray, "1 m d"]:
    """Resize position embeddings to another grid of (rows, columns); the first `prefix` tokens' slots do not change.

    Raises UserError if the table does not have prefix + rows * columns slots. Source: arXiv:2010.11929, section 3.2.
    """
    if table.shape[1] != prefix + old_grid[0] * old_grid[1]:
        raise UserError(
            f"The table has {table.shape[1]} position embeddings; expected {prefix} and {old_grid[0]} x {old_grid[1]}."
        )
    grid = resize_grid(table[0, prefix:].reshape(*old_grid, -1), new_grid, method)
    return np.concatenate([table[:, :prefix], grid.reshape(1, -1, table.shape[2]).astype(table.dtype)], axis=1)


def resize_patch_embed(
    kernel: Float[np.ndarray, "ph pw c d"], new_size: Grid, method: PatchMethod = "bilinear"
) -> Float[np.ndarray, "qh qw c d"]:
    """Resize a patch embedding to patches of another (height, width): the pseudo-inverse resize of FlexiViT.

    A patch that is enlarged by `method` keeps its embedding (arXiv:2212.08013, section 3.4): FlexiViT uses "bilinear"
    like tf.image.resize, timm the antialiased "bicubic".
    """
    # Resizing an image is the Kronecker product of resizing its axes, and so is the pseudo-inverse.
    rows, cols = (
        np.linalg.pinv(resize_matrix(old, new, "half_pixel" if method == "bilinear" else method))
        for old, new in zip(kernel.shape[:2], new_size, strict=True)
    )
    return np.einsum("ip,jq,ijcd->pqcd", rows, cols, kernel.astype(np.float64), optimize=True).astype(kernel.dtype)


def adapt_channels(kernel: Float[np.ndarray, "h w c d"], channels: int) -> Float[np.ndarray, "h w e d"]:
    """Adapt the first kernel of a network for RGB or grey images to another number of channels.

    For one channel it is summed, so that grey images give the same result as in RGB; for more it is repeated and scaled
    by old / new, as in timm. Raises UserError for a kernel with neither 1 nor 3 channels.
    """
    old = kernel.shape[2]
    if old == channels:
        return kernel
    if old not in (1, 3):
        raise UserError(f"A kernel for {old} channels; only one for 1 or 3 can be made into one for {channels}.")
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.take(kernel, np.arange(channels) % old, axis=2)
    return (repeated * np.float64(old / channels)).astype(kernel.dtype)
