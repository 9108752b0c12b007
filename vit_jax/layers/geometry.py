"""Positions of tokens on the grid of patches, for attention with rotary embeddings or relative biases."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Geometry:
    """Positions of the tokens of a sequence, shared by all images or with a leading dimension of images.

    coords: (row, column) [..., n, 2] in the units of the rotary embedding, 0 for tokens before the patches, which are
    not rotated. offsets: the row [..., n, n], for each query and key, in a table of relative biases with `distances`
    rows. bias: the values [..., heads, n, n] that a table shared by all blocks adds to the scores.
    """

    coords: Float[Array, "... n 2"] | None = None
    offsets: Int[Array, "... n n"] | None = None
    bias: Float[Array, "... k n n"] | None = None
    distances: int = flax.struct.field(pytree_node=False, default=0)


def rows_and_columns(grid: tuple[int, int], kept: Int[Array, "... n"] | None) -> Int[Array, "... n 2"]:
    """Return the row and column of each patch, or only of the patches with the indices `kept`."""
    patches = jnp.arange(grid[0] * grid[1]) if kept is None else kept
    return jnp.stack([patches // grid[1], patches % grid[1]], axis=-1)


def num_distances(grid: tuple[int, int]) -> int:
    """Return the number of offsets between two patches, plus three for pairs with a token before the patches."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def relative_offsets(at: Int[Array, "... n 2"], grid: tuple[int, int], prefix: int) -> Int[Array, "... m m"]:
    """Return the row of the table for each query and key, including `prefix` tokens before the patches at `at`.

    Offsets between patches (of the query from the key) are numbered row by row from the most negative one. The last three rows
    are for queries before the patches, keys before the patches, and both (arXiv:2106.08254, as in the authors' code).
    """
    rows, columns = (at[..., i] for i in (0, 1))
    down, right = (x[..., :, None] - x[..., None, :] for x in (rows, columns))
    index = (down + grid[0] - 1) * (2 * grid[1] - 1) + right + grid[1] - 1
    index = jnp.pad(index, [(0, 0)] * (index.ndim - 2) + [(prefix, 0)] * 2)
    before = jnp.arange(index.shape[-1]) < prefix
    query, key = (with_rank(x, index.ndim) for x in (before[:, None], before[None, :]))
    last = num_distances(grid) - 1
    return jnp.where(query & key, last, jnp.where(query, last - 2, jnp.where(key, last - 1, index)))


def causal(num_heads: int, length: int) -> Geometry:
    """Return the geometry in which a token attends to itself and to the tokens before it."""
    later = jnp.triu(jnp.ones((length, length), bool), 1)
    bias = jnp.where(later, jnp.finfo(jnp.float32).min, 0.0)
    return Geometry(bias=jnp.broadcast_to(bias, (num_heads, length, length)))


def with_rank(x: Array, rank: int) -> Array:
    """Return the array with leading dimensions of 1, up to `rank` dimensions."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def relative_bias(table: Float[Array, "distances k"], offsets: Int[Array, "... n n"]) -> Float[Array, "... k n n"]:
    """Return the biases that the table adds to the scores of each head."""
    return jnp.moveaxis(jnp.take(table, offsets, axis=0), -1, -3)


def before_patches(coords: Float[Array, "... n 2"], prefix: int) -> Float[Array, "... m 2"]:
    """Return the coordinates with zeros for `prefix` tokens before the patches."""
    return jnp.pad(coords, [(0, 0)] * (coords.ndim - 2) + [(prefix, 0), (0, 0)])


def augmented(
    coords: Float[Array, "... 2"], key: jax.Array, shift: float | None, jitter: float | None, rescale: float | None
) -> Float[Array, "... 2"]:
    """Return coordinates moved by up to `shift` and scaled log-uniformly by up to `jitter` for each axis, `rescale` for both.

    One draw is for all tokens and images (arXiv:2508.10104, section 3.2, and the authors' code).
    """
    keys = jax.random.split(key, 3)
    shape = (1,) * (coords.ndim - 1)
    if shift is not None:
        coords = coords + jax.random.uniform(keys[0], (*shape, 2), minval=-shift, maxval=shift)
    for factor, draw, size in ((jitter, keys[1], 2), (rescale, keys[2], 1)):
        if factor is not None:
            coords = coords * factor ** jax.random.uniform(draw, (*shape, size), minval=-1.0)
    return coords
