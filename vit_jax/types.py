"""The shared names of arrays and trees, and the one exception that means "the user can fix this"."""

from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Array, Float, Int, Key, UInt8

# Dimension letters used everywhere: b batch, h w c image, n tokens, d width, k heads, classes.
Images = Float[Array, "b h w c"]
ByteImages = UInt8[Array, "b h w c"]
Tokens = Float[Array, "b n d"]
Labels = Int[Array, "b"]
Logits = Float[Array, "b classes"]
Rng = Key[Array, ""]
Params = Mapping[str, Any]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]


class UserError(Exception):
    """A mistake that the user can fix; commands print its message alone and exit with code 2."""
