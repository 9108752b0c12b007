"""Images of any shape as sequences of patches (NaViT, arXiv:2307.06304), and positions interpolated for each image."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from vit_jax.types import UserError


@flax.struct.dataclass
class Patches:
    """The patches of images of different shapes, used instead of an array of images.

    pixels: of each patch, row by row, channels last; coords: its row and column; valid: False for padding.
    """

    pixels: Float[Array, "b n o"] | UInt8[Array, "b n o"]
    coords: Int[Array, "b n 2"]
    valid: Bool[Array, "b n"]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Raise UserError, since patches are not images of one shape."""
        raise UserError(
            "This objective or transform takes whole images [h, w, c] and found patches; leave patchify out of data.preprocess."
        )

    @property
    def grids(self) -> Int[Array, "b 2"]:
        """The numbers of rows and columns of each image."""
        return jnp.where(self.valid[:, :, None], self.coords + 1, 0).max(axis=1)


def interpolated(
    table: Float[Array, "rows cols d"], coords: Int[Array, "b n 2"], grids: Int[Array, "b 2"]
) -> Float[Array, "b n d"]:
    """Return the table's vectors at positions on grids of other sizes.

    Interpolates bilinearly between the centres of cells, with antialiasing if the grid is smaller, like
    torch.nn.functional.interpolate and SigLIP 2 (arXiv:2502.14786, section 2.4.2).
    """
    rows, cols = (_weights(size, coords[:, :, i], grids[:, i]) for i, size in enumerate(table.shape[:2]))
    between = jnp.einsum("bnj,ijd->bnid", cols, table.astype(jnp.float32))
    return jnp.einsum("bni,bnid->bnd", rows, between)


def _weights(size: int, at: Int[Array, "b n"], count: Int[Array, "b"]) -> Float[Array, "b n size"]:
    """Return the weights of `size` samples for the samples `at` of `count`."""
    scale = size / jnp.maximum(count, 1)[:, None, None]
    centres = (at[:, :, None] + 0.5) * scale
    distance = jnp.abs(jnp.arange(size).reshape(1, 1, -1) + 0.5 - centres) / jnp.maximum(scale, 1.0)
    weights = jnp.maximum(0.0, 1.0 - distance)
    return weights / jnp.maximum(weights.sum(axis=2, keepdims=True), 1e-9)
