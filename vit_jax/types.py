"""Shared names of arrays and trees, and the one exception that means "the user can fix this"."""

import re
from collections.abc import Mapping
from typing import Any, Literal

Params = Mapping[str, Any]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]
# How position embeddings are resized.
PosembMethod = Literal["bilinear", "bicubic", "bicubic_no_antialias", "dinov2"]
PatchMethod = Literal["bilinear", "bicubic"]  # the resize of images that a resized patch embedding undoes


def __getattr__(name: str) -> Any:
    """Return the names of arrays, made on first use: they import jax, which data workers do without."""
    if name not in ("Images", "ByteImages", "Pixels", "Tokens", "Labels", "Logits", "Rng", "Mask"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxtyping import Array, Bool, Float, Int, Key, UInt8

    # Dimension letters used everywhere: b batch, h w c image, n tokens, d width, k heads, classes.
    images, byte_images = Float[Array, "b h w c"], UInt8[Array, "b h w c"]
    globals().update(
        Images=images,
        ByteImages=byte_images,
        Pixels=byte_images | images,  # in [0, 255]; floats where images are mixed
        Tokens=Float[Array, "b n d"],
        Labels=Int[Array, "b"],
        Logits=Float[Array, "b classes"],
        Rng=Key[Array, ""],
        Mask=Bool[Array, "b n"] | None,  # False for tokens that are left out
    )
    return globals()[name]


class UserError(Exception):
    """A mistake that the user can fix; commands print only its message and exit with code 2."""


def compile_regex(pattern: str, where: str) -> re.Pattern[str]:
    """Return a compiled regular expression; raises UserError, naming `where`, for a malformed one."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}={pattern!r} is not a regular expression ({error}); write e.g. 'kernel$'.") from None
