"""Shared types of arrays, trees and numbers, and the exception for mistakes that the user can fix."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

Params = Mapping[str, Any]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]
# Kinds of fixed position embeddings; see layers/posemb.py.
Sincos = Literal["sincos2d", "sincos2d_mae"]
# How position embeddings are resized.
PosembMethod = Literal["bilinear", "bicubic", "bicubic_no_antialias", "dinov2"]
PatchMethod = Literal["bilinear", "bicubic"]  # the resize of images that a resized patch embedding undoes


@dataclasses.dataclass(frozen=True)
class Between:
    """Inclusive bounds of a number, as in Annotated[int, Between(0, 9)]; checked in values that users write."""

    least: int | float
    most: int | float


# Numbers that cost time, memory or processes. The bounds are far beyond useful values, and catch typos before anything
# is built.
BatchSize = Annotated[int, Between(1, 2**20)]
Steps = Annotated[int, Between(1, 2**31 - 1)]
Units = Annotated[int, Between(1, 2**20)]  # of a layer, or pixels of a side
Classes = Annotated[int, Between(0, 2**20)]  # 0 for a network without a head
Count = Annotated[int, Between(1, 1024)]  # blocks, heads, parts, rounds
Threads = Annotated[int, Between(0, 1024)]  # or processes, or batches ahead
Megabytes = Annotated[int, Between(0, 2**24)]
Fraction = Annotated[float, Between(0, 1)]
Seed = Annotated[int, Between(0, 2**32 - 1)]


def __getattr__(name: str) -> Any:
    """Return an array type, created on first use: array types import jax, which data workers do not need."""
    if name not in ("Images", "ByteImages", "Pixels", "Tokens", "Labels", "Logits", "Rng", "Mask"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxtyping import Array, Bool, Float, Int, Key, UInt8

    # Dimension letters used everywhere: b batch, h w c image, n tokens, d width, k heads, classes.
    images, byte_images = Float[Array, "b h w c"], UInt8[Array, "b h w c"]
    globals().update(
        Images=images,
        ByteImages=byte_images,
        Pixels=byte_images | images,  # in [0, 255]; floats if images are mixed
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
