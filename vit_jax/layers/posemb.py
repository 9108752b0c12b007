"""Position embeddings of a patch grid."""

from typing import Literal, cast, get_args

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from vit_jax.layers.patches import interpolated
from vit_jax.types import Sincos, Tokens, UserError


def sincos2d(
    rows: int, cols: int, width: int, temperature: float = 10_000.0, kind: Sincos = "sincos2d"
) -> Float[np.ndarray, "n d"]:
    """Fixed 2-D sine-cosine embeddings (arXiv:2205.01580), [rows * cols, width] in row-major order.

    The four quarters of the width are sin(x w), cos(x w), sin(y w), cos(y w) over geometric frequencies w, from 1 to
    1 / temperature; in MAE (arXiv:2111.06377, "sincos2d_mae") the last one is one ratio above that.
    """
    if width % 4:
        raise UserError(f"posemb={kind!r} needs a width divisible by 4; found {width}.")
    frequencies = temperature ** -np.linspace(0.0, 1.0, width // 4, endpoint=kind == "sincos2d")
    y, x = np.mgrid[:rows, :cols].reshape(2, -1, 1) * frequencies.reshape(1, 1, -1)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


class AddPositions(nn.Module):
    """Add a position embedding to the tokens of a grid after `prefix` tokens, such as the class token.

    "learn" has one vector for each token, including the prefix, initialized to normal with the standard deviation
    `std`, or 1 / sqrt(d) for "width"; "sincos2d" and "sincos2d_mae" are zero on the prefix; "none" adds nothing.
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0
    std: float | Literal["width"] = 0.02
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Tokens, coords: Int[Array, "c m 2"] | None = None, grids: Int[Array, "c 2"] | None = None
    ) -> Tokens:
        """Map tokens [b, prefix + patches, d]; with coords, interpolate positions for grids of (rows, columns)."""
        width = tokens.shape[2]
        n = self.prefix + self.grid[0] * self.grid[1]
        if self.kind == "learn":
            std = width**-0.5 if self.std == "width" else self.std
            had: int = self.get_variable("params", "table").shape[1] if self.has_variable("params", "table") else n
            if had != n:
                raise UserError(
                    f"The learned positions are of {had} tokens; found an image of {n}, {self.grid[0]} x {self.grid[1]} patches. "
                    "For images of several sizes give model.posemb_grid=(rows, columns), or model.posemb='sincos2d'."
                )
            table: Array = self.param("table", nn.initializers.normal(std), (1, n, width), self.param_dtype)
        elif self.kind in get_args(Sincos):
            fixed = sincos2d(*self.grid, width, kind=cast(Sincos, self.kind))
            table = jnp.pad(jnp.asarray(fixed), ((self.prefix, 0), (0, 0)))[None]
        else:
            return tokens
        if coords is not None and grids is not None:
            patches = interpolated(table[0, self.prefix :].reshape(*self.grid, width), coords, grids)
            before = jnp.broadcast_to(table[:, : self.prefix], (len(patches), self.prefix, width))
            table = jnp.concatenate([before, patches.astype(table.dtype)], axis=1)
        return tokens + table.astype(tokens.dtype)
