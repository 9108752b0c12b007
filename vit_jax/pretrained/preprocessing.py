"""How images are prepared for a published model, between its own config and our preprocess spec."""

import ast
import dataclasses
import re
from typing import Literal, get_args

Method = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

_CALL = r"\(\s*(\(\d+,\s*\d+\)|\d+)\s*(?:,\s*(?:method=)?['\"](\w+)['\"]\s*)?\)\s*"
_PATTERN = re.compile(rf"\s*(?:resize{_CALL}|resize_small{_CALL}\|\s*central_crop{_CALL})")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The image a model takes: (height, width), how it is cut out of a photograph, and how its values are normalised.

    short_side: the length to which the shorter side is resized before the middle is cut out; None resizes to `size` whatever
    the aspect ratio. mean and std are of values in [0, 1], one for each channel.
    """

    size: tuple[int, int]
    short_side: int | None
    method: Method
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def spec(self) -> str:
        """The preprocess spec, such as "resize_small(256, 'bicubic')|central_crop(224)"; bilinear is not said."""
        size = str(self.size[0]) if self.size[0] == self.size[1] else str(self.size)
        method = "" if self.method == "bilinear" else f", '{self.method}'"
        if self.short_side is None:
            return f"resize({size}{method})"
        return f"resize_small({self.short_side}{method})|central_crop({size})"


def from_spec(spec: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing | None:
    """The preprocessing that a spec says, or None where no other library's config could say it."""
    match = _PATTERN.fullmatch(spec)
    if match is None:
        return None
    whole, whole_method, side, side_method, crop, _ = match.groups()
    size = ast.literal_eval(whole or crop)
    short_side = ast.literal_eval(side) if side else None
    method = next((known for known in get_args(Method) if known == (whole_method or side_method or "bilinear")), None)
    if method is None or isinstance(short_side, tuple):
        return None
    return Preprocessing(size if isinstance(size, tuple) else (size, size), short_side, method, mean, std)
