"""Resize tables of relative position biases to another grid or window."""

import math

import numpy as np
from jaxtyping import Float

from vit_jax.checkpoint.transfer.patches import Grid, resize_posemb
from vit_jax.layers.geometry import num_distances

BEFORE = num_distances((1, 1)) - 1  # rows for tokens before the patches


def resized(name: str, table: np.ndarray, rows: int, old: Grid | None, new: Grid | None) -> np.ndarray | None:
    """Resize the table of a parameter to another number of rows; None if it is no table, or the grids are unknown."""
    if (
        name.endswith("/relative_bias")
        and old
        and new
        and (num_distances(old), num_distances(new)) == (len(table), rows)
    ):
        return resize_relative_bias(table, old, new)
    if name.endswith("/offset_bias"):
        return resize_offset_bias(table, math.isqrt(rows))
    return None


def resize_relative_bias(
    table: Float[np.ndarray, "distances k"], old: Grid, new: Grid
) -> Float[np.ndarray, "more_distances k"]:
    """Resize the biases of a grid of patches to another grid, as BEiT does (arXiv:2106.08254; its run_class_finetuning.py).

    The old offsets are placed at distances that grow geometrically up to the size of the new grid, so that near offsets
    keep their biases, and are interpolated with a bicubic spline. The rows for tokens before the patches do not change.
    """
    from scipy.interpolate import RectBivariateSpline  # takes half a second, which every command would pay

    old_size, new_size = ((2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (old, new))
    at = [_geometric(*sizes) for sizes in zip(old_size, new_size, strict=True)]
    wanted = [np.arange(size) - size // 2 for size in new_size]
    patches = table[:-BEFORE].reshape(*old_size, -1).astype(np.float64)
    columns = [RectBivariateSpline(*at, patches[..., i])(*wanted).ravel() for i in range(table.shape[1])]
    return np.concatenate([np.stack(columns, axis=-1).astype(table.dtype), table[-BEFORE:]])


def _geometric(old: int, new: int) -> np.ndarray:
    """Return positions of `old` offsets: 0, 1, 1 + q, 1 + q + q^2, ... to both sides; q in [1.01, 1.5] fits `new`."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q ** (old // 2)) / (1 - q) > new // 2 else (q, high)
    side = np.cumsum(q ** np.arange(old // 2))
    return np.concatenate([-side[::-1], [0.0], side])


def resize_offset_bias(table: Float[np.ndarray, "distances k"], side: int) -> Float[np.ndarray, "more_distances k"]:
    """Resize the biases of Swin's square windows to side^2 offsets, bicubic without antialiasing like Swin's code."""
    old = math.isqrt(len(table))
    return resize_posemb(table[None], (old, old), (side, side), 0, "bicubic_no_antialias")[0]
