"""Masks over the patches of images, drawn in the training step; True for patches that the network has to predict."""

import math

import jax
import jax.numpy as jnp
from einops import repeat
from jaxtyping import Array, Bool, Float, Int

from vit_jax.types import Rng, UserError

Masks = Bool[Array, "b patches"]


def check_ratio(name: str, ratio: float) -> None:
    """Raise UserError for a share of masked patches outside (0, 1)."""
    if not 0 < ratio < 1:
        raise UserError(f"task.{name} is {ratio}; expected a share of the patches between 0 and 1.")


def random_masks(rng: Rng, count: int, grid: tuple[int, int], ratio: float, unit: int = 1) -> Masks:
    """Mask `ratio` of the cells of unit x unit patches, rounded up, as SimMIM does (arXiv:2111.09886, section 3.2)."""
    rows, columns = grid
    if rows % unit or columns % unit:
        raise UserError(
            f"Masks of {unit} x {unit} patches do not tile {rows} x {columns} patches; use another task.unit."
        )
    cells = (rows // unit) * (columns // unit)
    masked = math.ceil(ratio * cells)
    if not 0 < masked < cells:
        raise UserError(
            f"task.mask_ratio={ratio} masks {masked} of {cells} cells; expected at least one masked and one visible cell: use "
            "another ratio, a smaller unit or patch, or larger images."
        )
    ranks = jnp.argsort(jnp.argsort(jax.random.uniform(rng, (count, cells)), axis=1), axis=1)
    cell_masks = (ranks < masked).reshape(count, rows // unit, columns // unit)
    return repeat(cell_masks, "b i j -> b (i u) (j v)", u=unit, v=unit).reshape(count, rows * columns)


def block_masks(
    rng: Rng,
    targets: Int[Array, " b"],
    grid: tuple[int, int],
    smallest: int = 16,
    aspects: tuple[float, float] = (0.3, 1 / 0.3),
) -> Masks:
    """Mask about targets[i] patches of image i by rectangles (arXiv:2106.08254, algorithm 1).

    Each attempt draws a rectangle of `smallest` to as many patches as remain to be masked, with a log-uniform aspect
    ratio. It counts if it is smaller than the image, masks another patch and does not exceed the target. After ten
    attempts in a row that do not count, as in the authors' code, the mask is final.
    """
    rows, columns = grid
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)[None]

    def attempt(carry: tuple[Rng, Array, Array], target: Array) -> tuple[Rng, Array, Array]:
        rng, mask, failures = carry
        rng, of_area, of_aspect, of_row, of_column = jax.random.split(rng, 5)
        left = target - mask.sum()
        area = jax.random.uniform(of_area) * (left - smallest) + smallest
        aspect = jnp.exp(jax.random.uniform(of_aspect, minval=math.log(aspects[0]), maxval=math.log(aspects[1])))
        height, width = (jnp.round(jnp.sqrt(area * x)).astype(jnp.int32) for x in (aspect, 1 / aspect))
        top = jax.random.randint(of_row, (), 0, jnp.maximum(rows - height, 0) + 1)
        start = jax.random.randint(of_column, (), 0, jnp.maximum(columns - width, 0) + 1)
        block = (row >= top) & (row < top + height) & (column >= start) & (column < start + width)
        added = (block & ~mask).sum()
        counts = (height < rows) & (width < columns) & (added > 0) & (added <= left)
        return rng, jnp.where(counts, mask | block, mask), jnp.where(counts, 0, failures + 1)

    def one(rng: Rng, target: Array) -> Array:
        def unfinished(carry: tuple[Rng, Array, Array]) -> Array:
            return (carry[1].sum() < target) & (carry[2] < 10)

        begin = rng, jnp.zeros(grid, bool), jnp.int32(0)
        return jax.lax.while_loop(unfinished, lambda carry: attempt(carry, target), begin)[1]

    return jax.vmap(one)(jax.random.split(rng, len(targets)), targets).reshape(len(targets), rows * columns)


def masked_share(values: Float[Array, "b patches"], masks: Masks) -> Float[Array, " b"]:
    """Return the mean over the masked patches of each image, 0 for an image without any."""
    return jnp.where(masks, values, 0.0).sum(axis=1) / jnp.maximum(masks.sum(axis=1), 1)
