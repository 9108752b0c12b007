"""The shared names of arrays and trees, and the one exception that means "the user can fix this"."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Array, Float, Int, Key, UInt8

# Dimension letters used everywhere: b batch, h w c image, n tokens, d width, k heads, classes.
Images = Float[Array, "b h w c"]
ByteImages = UInt8[Array, "b h w c"]
Pixels = ByteImages | Images  # of values in [0, 255]; floats where they are mixed
Tokens = Float[Array, "b n d"]
Labels = Int[Array, "b"]
Logits = Float[Array, "b classes"]
Rng = Key[Array, ""]
Params = Mapping[str, Any]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]


class UserError(Exception):
    """A mistake that the user can fix; commands print its message alone and exit with code 2."""


def compile_regex(pattern: str, where: str) -> re.Pattern[str]:
    """A compiled regular expression; raises UserError, which says where it stands, for a malformed one."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}={pattern!r} is no regular expression ({error}); write e.g. 'kernel$'.") from None
