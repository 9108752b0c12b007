"""Resize samples along an axis with a matrix, and the values of a grid."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from vit_jax.types import PosembMethod


def resize_matrix(old: int, new: int, method: PosembMethod | Literal["half_pixel"]) -> Float[np.ndarray, "{new} {old}"]:
    """Return the matrix that resamples `old` samples to `new` ones, in float64; each row sums to 1.

    "bilinear" aligns the first and last samples, like scipy.ndimage.zoom(order=1, mode="nearest"); the default mode of
    zoom returns 0 for the last sample if its position is rounded up, as from 24 to 42. "half_pixel" is bilinear between
    the centres of pixels and not antialiased, like tf.image.resize. "bicubic" is the antialiased kernel of Pillow and
    PyTorch with a = -0.5, widened by old / new if that shrinks; "bicubic_no_antialias" is PyTorch's other kernel, with
    a = -0.75. "dinov2" is "bicubic_no_antialias" for a new grid that is 0.1 samples larger: the rule of DINO and DINOv2
    (interpolate_pos_encoding in the authors' vision_transformer.py), except for models with registers, which use
    "bicubic". "bicubic" ignores samples beyond the ends; the last two repeat the first and last samples there.
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


def resize_grid(
    values: Float[np.ndarray, "i j d"], size: tuple[int, int], method: PosembMethod
) -> Float[np.ndarray, "r c d"]:
    """Resize the values of a grid to another size (rows, columns), in float64."""
    rows, columns = (resize_matrix(old, new, method) for old, new in zip(values.shape[:2], size, strict=True))
    return np.einsum("ri,cj,ijd->rcd", rows, columns, values.astype(np.float64), optimize=True)


def _cubic(x: Float[np.ndarray, "n m"], a: float) -> Float[np.ndarray, "n m"]:
    """Return the cubic convolution kernel at the distances x (Keys 1981, equation 4)."""
    inner, outer = ((a + 2) * x - (a + 3)) * x**2 + 1.0, a * (((x - 5.0) * x + 8.0) * x - 4.0)
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))
