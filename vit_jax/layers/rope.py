"""Rotary position embeddings: pairs of channels of queries and keys are rotated by angles that grow with the position.

A product of a query and a key then depends only on the offset between them (arXiv:2104.09864). Chosen by `model.rope`.
"""

import abc
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.layers.geometry import augmented, with_rank
from vit_jax.types import DtypeName, UserError

Pairs = Literal["halves", "neighbours"]
Grid = tuple[int, int] | Int[Array, "b 1 2"]


class Rope(nn.Module):
    """The pairs of channels to rotate, and their angles. Coordinates are of whole grids; training may augment them."""

    pairs: Pairs

    @abc.abstractmethod
    def coords(self, at: Int[Array, "... 2"], grid: Grid, key: jax.Array | None) -> Float[Array, "... 2"]:
        """Return the coordinates of (row, column) positions on a grid, or on the grids [b, 1, 2] of different images.

        key: draws an augmentation; None for no augmentation.
        """

    @abc.abstractmethod
    def __call__(
        self, coords: Float[Array, "... n 2"], num_heads: int, head_width: int
    ) -> Float[Array, "... n k half"]:
        """Return the angle of each pair of channels, for every head or once for all heads."""


KIND = Rope


def _frequencies(base: float, head_width: int) -> Float[np.ndarray, " quarter"]:
    if head_width % 4:
        raise UserError(f"model.rope rotates heads whose width is divisible by 4; found {head_width}.")
    return np.float64(base) ** -(np.arange(0, head_width, 4) / head_width)


class Axial(Rope):
    """Half of the pairs are rotated by the row and half by the column, at geometric frequencies base^(-4i / head width).

    coordinates: "centred" from -1 to 1 for every grid, times 2 pi (DINOv3, arXiv:2508.10104), or "index", the number of
    the row or column, rescaled to a grid of `reference` rows and columns if that is given (EVA-02, arXiv:2303.11331).
    pairs: channels i and i + half of the head ("halves", DINOv3), or 2i and 2i + 1 ("neighbours", EVA-02). shift,
    jitter, rescale: see geometry.augmented.
    """

    base: float = 100.0
    coordinates: Literal["centred", "index"] = "centred"
    reference: int | tuple[int, int] | None = None
    pairs: Pairs = "halves"
    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("jitter", "rescale"):
            if (factor := getattr(self, name)) is not None and factor < 1:
                raise UserError(f"model.rope.{name}={factor}; expected a factor of at least 1, such as 2.")
        if self.base <= 0 or (self.shift or 0) < 0:
            raise UserError(
                f"model.rope has base={self.base}, shift={self.shift}; expected a base above 0, no negative shift."
            )
        if self.reference is not None and self.coordinates != "index":
            raise UserError(
                "model.rope.reference rescales coordinates='index'; 'centred' ones do not depend on the grid."
            )

    def coords(self, at: Int[Array, "... 2"], grid: Grid, key: jax.Array | None) -> Float[Array, "... 2"]:
        """See Rope."""
        sizes = with_rank(jnp.asarray(grid, jnp.float32), at.ndim)
        if self.coordinates == "centred":
            found = 2 * ((at + 0.5) / sizes) - 1
        elif self.reference is None:
            found = at.astype(jnp.float32)
        else:
            sides = jnp.broadcast_to(jnp.asarray(self.reference, jnp.float32), (2,))
            found = at / sizes * with_rank(sides, at.ndim)
        if key is None or (self.shift, self.jitter, self.rescale) == (None, None, None):
            return found
        return augmented(found, key, self.shift, self.jitter, self.rescale)

    @nn.compact
    def __call__(
        self, coords: Float[Array, "... n 2"], num_heads: int, head_width: int
    ) -> Float[Array, "... n 1 half"]:
        """See Rope."""
        turn = 2 * np.pi if self.coordinates == "centred" else 1.0
        frequencies = jnp.asarray(turn * _frequencies(self.base, head_width), jnp.float32)
        angles = coords[..., None] * with_rank(frequencies, coords.ndim + 1)
        return angles.reshape(*coords.shape[:-1], 1, head_width // 2)


class Mixed(Rope):
    """Every pair of channels is rotated by a learned mixture of row and column (RoPE-Mixed, arXiv:2403.13298, equation 10).

    The parameter `frequencies` [2 (of columns, of rows), heads, head width / 2] is initialized to axial frequencies,
    rotated by a random angle in each head.
    """

    base: float = 10.0
    pairs: Pairs = "neighbours"
    param_dtype: DtypeName = "float32"

    def coords(self, at: Int[Array, "... 2"], grid: Grid, key: jax.Array | None) -> Float[Array, "... 2"]:
        """See Rope."""
        return at.astype(jnp.float32)

    @nn.compact
    def __call__(
        self, coords: Float[Array, "... n 2"], num_heads: int, head_width: int
    ) -> Float[Array, "... n k half"]:
        """See Rope."""
        sizes = jnp.asarray(_frequencies(self.base, head_width), jnp.float32)

        def initial(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
            turns = jax.random.uniform(key, (num_heads, 1), maxval=2 * np.pi)
            turns = jnp.repeat(jnp.concatenate([turns, turns + np.pi / 2], axis=1), len(sizes), axis=1)
            both = jnp.stack([jnp.cos(turns), jnp.sin(turns)])
            return (both * with_rank(jnp.tile(sizes, 2), 3)).astype(dtype)

        shape = (2, num_heads, head_width // 2)
        learned = self.param("frequencies", initial, shape, jnp.dtype(self.param_dtype)).astype(jnp.float32)
        rows, columns = coords[..., 0, None, None], coords[..., 1, None, None]
        of_columns, of_rows = (with_rank(x, rows.ndim) for x in learned)
        return columns * of_columns + rows * of_rows


def rotate(x: Float[Array, "b n k h"], angles: Float[Array, "... n k2 half"], pairs: Pairs) -> Float[Array, "b n k h"]:
    """Rotate each pair of channels by its angle, in float32."""
    angles = with_rank(angles, x.ndim)
    sin, cos, dtype = jnp.sin(angles), jnp.cos(angles), x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    if pairs == "halves":
        first, second = jnp.split(x, 2, axis=-1)
    else:
        first, second = x[..., ::2], x[..., 1::2]
    turned = (first * cos - second * sin, second * cos + first * sin)
    together = jnp.concatenate(turned, axis=-1) if pairs == "halves" else jnp.stack(turned, axis=-1).reshape(x.shape)
    return together.astype(dtype)
