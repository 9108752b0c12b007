"""A published model in this library's terms: spec, parameters and preprocessing."""

import ast
import dataclasses
import re
from typing import Any, Literal, get_args

import numpy as np

from vit_jax.types import PatchMethod, PosembMethod

FlatParams = dict[str, np.ndarray]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

_CALL = r"\(\s*(\(\d+,\s*\d+\)|\d+)\s*(?:,\s*(?:method=)?['\"](\w+)['\"]\s*)?\)\s*"
_SPEC = re.compile(rf"\s*(?:resize{_CALL}|resize_small{_CALL}\|\s*central_crop{_CALL})")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing of a published model.

    Attributes:
      size: (height, width) of the model's input.
      short_side: length to which the shorter side is resized before a central crop; None resizes to `size` and ignores
        the aspect ratio.
      method: interpolation of the resize.
      mean, std: normalization of values in [0, 1], one number per channel.
    """

    size: tuple[int, int]
    short_side: int | None
    method: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def spec(self) -> str:
        """The preprocess spec, such as "resize_small(256, 'bicubic')|central_crop(224)"; bilinear is the default."""
        size = str(self.size[0]) if self.size[0] == self.size[1] else str(self.size)
        method = "" if self.method == "bilinear" else f", '{self.method}'"
        if self.short_side is None:
            return f"resize({size}{method})"
        return f"resize_small({self.short_side}{method})|central_crop({size})"


def from_spec(spec: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing | None:
    """Parse a preprocess spec; return None if other libraries' configs cannot express it."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        return None
    whole, whole_method, side, side_method, crop, _ = match.groups()
    size = ast.literal_eval(whole or crop)
    short_side = ast.literal_eval(side) if side else None
    method = next(
        (known for known in get_args(Interpolation) if known == (whole_method or side_method or "bilinear")), None
    )
    if method is None or isinstance(short_side, tuple):
        return None
    return Preprocessing(size if isinstance(size, tuple) else (size, size), short_side, method, mean, std)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model.

    Attributes:
      model: spec of the network.
      params: parameters by this library's names.
      preprocessing: how its images are prepared.
      class_names: names of the classes in order, or None if the source does not list them.
      origin: what was read, for messages.
      posemb, patches: how the authors resize position and patch embeddings.
      notes: assumptions made where the source does not say, one sentence each.
    """

    model: dict[str, Any]
    params: FlatParams
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    origin: str
    posemb: PosembMethod = "bilinear"
    patches: PatchMethod = "bilinear"
    notes: tuple[str, ...] = ()
