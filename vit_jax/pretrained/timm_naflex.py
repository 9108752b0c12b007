"""Read timm's NaFlexVit, a ViT whose positions are interpolated to the grid of each image."""

import math
import re

import numpy as np
from jaxtyping import Float

from vit_jax.layers.resize import resize_grid, resize_matrix
from vit_jax.pretrained.links import shape_of
from vit_jax.pretrained.pretrained import FlatParams
from vit_jax.pretrained.timm_config import TimmArgs
from vit_jax.types import UserError

_PATCHES = "embeds.proj.weight"
MOST_PIXELS = 8192  # of a side, for which positions are resized
Grid = tuple[int, int]


def matches(arrays: FlatParams) -> bool:
    """Return whether the arrays have the names of a NaFlexVit."""
    return _PATCHES in arrays


def as_plain(arrays: FlatParams, args: TimmArgs, origin: str) -> tuple[FlatParams, Grid | None, list[str]]:
    """Return the arrays under the names of timm's VisionTransformer, the grid of positions that the model resizes, and notes.

    SigLIP 2's positions are resized as our model does for images of any shape. timm resizes the others differently, and
    they are resized here to the image size that the config states: the result is a ViT for images of that size. Raises
    UserError for networks other than a ViT with learned positions.
    """
    if not {"norm.weight", "fc_norm.weight"} & arrays.keys() or not any("pos_embed" in name for name in arrays):
        raise UserError(
            f"{origin} is a NaFlexVit without a final norm or learned positions, such as C-RADIO; they are not supported."
        )
    width, size = shape_of(arrays, _PATCHES, 2, origin)
    channels = 3 if size % 3 == 0 else 1
    patch = math.isqrt(size // channels)
    if patch * patch * channels != size:
        raise UserError(f"{origin} has patches of {size} numbers; expected square ones of 1 or 3 channels.")
    plain = {re.sub(r"^embeds\.", "patch_embed." if ".proj." in name else "", name): x for name, x in arrays.items()}
    kernel = plain["patch_embed.proj.weight"].reshape(width, patch, patch, channels)
    plain["patch_embed.proj.weight"] = kernel.transpose(0, 3, 1, 2)
    if args.image_size is not None and not patch <= min(args.image_size) <= max(args.image_size) <= MOST_PIXELS:
        raise UserError(
            f"{origin}: its config.json states images of {args.image_size}; expected {patch}, the size of a patch, to "
            f"{MOST_PIXELS:,} pixels a side: correct input_size."
        )
    grid, resizes = _grid(plain, origin), "siglip" in (args.architecture or "")
    wanted = grid if resizes or args.image_size is None else (args.image_size[0] // patch, args.image_size[1] // patch)
    whole = (max(wanted), max(wanted)) if "_par" in (args.architecture or "") else wanted  # keeps the aspect ratio
    table = _resized(plain, grid, whole)[: wanted[0], : wanted[1]]
    plain["pos_embed"] = table.reshape(1, -1, width).astype(np.float32)
    notes = [] if wanted == grid else [f"Its positions were resized from {grid} to {wanted} patches, as timm does."]
    return plain, grid if resizes else None, notes


def _grid(plain: FlatParams, origin: str) -> Grid:
    """Return the rows and columns for which the positions were learned."""
    if "pos_embed" in plain:
        _, rows, columns, _ = shape_of(plain, "pos_embed", 4, origin)
        return rows, columns
    return shape_of(plain, "pos_embed_y", 3, origin)[1], shape_of(plain, "pos_embed_x", 3, origin)[1]


def _resized(plain: FlatParams, grid: Grid, size: Grid) -> Float[np.ndarray, "h w d"]:
    """Remove the positions from the arrays, and return them for a grid of another size by timm's rule."""
    if "pos_embed" in plain:
        table = plain.pop("pos_embed")[0].astype(np.float32)
        return table if grid == size else resize_grid(table, size, "bicubic")
    rows, columns = (
        resize_matrix(old, new, "half_pixel") @ plain.pop(f"pos_embed_{axis}")[0].astype(np.float32)
        for axis, old, new in zip("yx", grid, size, strict=True)
    )
    return rows[:, None] + columns[None]
