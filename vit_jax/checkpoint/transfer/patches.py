"""Resize parameters to another image size, patch size or number of channels."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from vit_jax.types import PatchMethod, PosembMethod, UserError

Grid = tuple[int, int]


def resize_matrix(old: int, new: int, method: PosembMethod | Literal["half_pixel"]) -> Float[np.ndarray, "{new} {old}"]:
    """Return the matrix that resamples `old` samples to `new` ones, in float64; each row sums to 1.

    "bilinear" aligns the first and last samples, as scipy.ndimage.zoom(order=1, mode="nearest") does; the
    default mode of zoom returns 0 for the last sample where its position is rounded up, as from 24 to 42. "half_pixel" is
    bilinear between the centres of pixels and not antialiased, as tf.image.resize. "bicubic" is the antialiased kernel with
    a = -0.5 of Pillow and PyTorch, widened by old / new where that shrinks; "bicubic_no_antialias" PyTorch's other one, with
    a = -0.75. "dinov2" is the latter for a new grid that is 0.1 samples larger: the rule of DINO and DINOv2
    (interpolate_pos_encoding in the authors' vision_transformer.py), but not of models with registers, whose rule is "bicubic".
    Beyond the ends the last three repeat the first and last samples.
    """
    at = np.arange(old).reshape(1, -1)
    if method == "bilinear":
        return np.maximum(0.0, 1.0 - np.abs(at - np.linspace(0.0, old - 1.0, new).reshape(-1, 1)))
    scale = old / (new + 0.1) if method == "dinov2" else old / new
    centres = (np.arange(new).reshape(-1, 1) + 0.5) * scale - 0.5
    if method == "half_pixel":
        return np.maximum(0.0, 1.0 - np.abs(at - centres.clip(0.0, old - 1.0)))
    if method == "bicubic":
        weights = _cubic(np.abs(at - centres) / max(scale, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    wide = np.arange(-2, old + 2).reshape(1, -1)
    weights = _cubic(np.abs(wide - centres), -0.75)
    inside = weights[:, 2:-2].copy()
    inside[:, 0] += weights[:, :2].sum(axis=1)
    inside[:, -1] += weights[:, -2:].sum(axis=1)
    return inside


def _cubic(x: Float[np.ndarray, "n m"], a: float) -> Float[np.ndarray, "n m"]:
    """Return the cubic convolution kernel at the distances x (Keys 1981, equation 4)."""
    inner, outer = ((a + 2) * x - (a + 3)) * x**2 + 1.0, a * (((x - 5.0) * x + 8.0) * x - 4.0)
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def resize_posemb(
    table: Float[np.ndarray, "1 n d"], old_grid: Grid, new_grid: Grid, prefix: int, method: PosembMethod
) -> Float[np.ndarray, "1 m d"]:
    """Resize position embeddings to another grid of (rows, columns); the slots of the first `prefix` tokens stay.

    Raises UserError where the table does not have prefix + rows * columns slots. Source: arXiv:2010.11929, section 3.2.
    """
    if table.shape[1] != prefix + old_grid[0] * old_grid[1]:
        raise UserError(
            f"The table has {table.shape[1]} position embeddings; expected {prefix} and {old_grid[0]} x {old_grid[1]}."
        )
    rows, cols = (resize_matrix(old, new, method) for old, new in zip(old_grid, new_grid, strict=True))
    grid = table[0, prefix:].reshape(*old_grid, -1).astype(np.float64)
    grid = np.einsum("ri,cj,ijd->rcd", rows, cols, grid, optimize=True)
    return np.concatenate([table[:, :prefix], grid.reshape(1, -1, table.shape[2]).astype(table.dtype)], axis=1)


def resize_patch_embed(
    kernel: Float[np.ndarray, "ph pw c d"], new_size: Grid, method: PatchMethod = "bilinear"
) -> Float[np.ndarray, "qh qw c d"]:
    """Resize a patch embedding to patches of another (height, width): the pseudo-inverse resize of FlexiViT.

    A patch that is enlarged by `method` keeps its embedding (arXiv:2212.08013, section 3.4): FlexiViT's own is "bilinear" as
    tf.image.resize, timm's the antialiased "bicubic".
    """
    # Resizing an image is the Kronecker product of resizing its axes, and so is the pseudo-inverse.
    rows, cols = (
        np.linalg.pinv(resize_matrix(old, new, "half_pixel" if method == "bilinear" else method))
        for old, new in zip(kernel.shape[:2], new_size, strict=True)
    )
    return np.einsum("ip,jq,ijcd->pqcd", rows, cols, kernel.astype(np.float64), optimize=True).astype(kernel.dtype)


def adapt_channels(kernel: Float[np.ndarray, "h w c d"], channels: int) -> Float[np.ndarray, "h w e d"]:
    """Adapt the first kernel of a network for RGB or grey images to another number of channels.

    To one channel it is summed, so that grey images give the same result as in RGB; to more it is repeated and scaled by
    old / new, as timm does. Raises UserError for a kernel of neither 1 nor 3 channels.
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
