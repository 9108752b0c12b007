"""Describe a published model in this library's terms: spec, parameters and preprocessing."""

import ast
import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vit_jax.types import PatchMethod, PosembMethod

FlatParams = dict[str, np.ndarray]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

Rule = Literal["big_vision", "torchvision", "transformers"]

# Arguments of the operations that other libraries' configs can express.
_ARGUMENTS = {
    "resize": ("size", "method"),
    "resize_small": ("size", "method", "rule"),
    "central_crop": ("size", "rule"),
}
_FORMS = (["resize"], ["central_crop"], ["resize", "central_crop"], ["resize_small", "central_crop"])


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing of a published model: a resize, then a central crop to `size`.

    Attributes:
      size: (height, width) of the model's input.
      resized: length of the shorter side after the resize, or (height, width); None for no resize.
      method: interpolation of the resize.
      mean, std: normalization of values in [0, 1], one number per channel.
      keep_ratio: whether the resized image covers `resized`, keeping its aspect ratio, or has exactly that size.
      rule: the library whose rounding of sides and margins is used.
    """

    size: tuple[int, int]
    resized: int | tuple[int, int] | None
    method: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    keep_ratio: bool = False
    rule: Rule = "big_vision"

    @property
    def spec(self) -> str:
        """The preprocess spec, such as "resize_small(256, 'bicubic')|central_crop(224)"; defaults are left out."""
        method = "" if self.method == "bilinear" else f", {self.method!r}"
        rule = "" if self.rule == "big_vision" else f", rule={self.rule!r}"
        crop = f"central_crop({_sides(self.size)}{rule})"
        if self.resized is None:
            return crop
        if self.keep_ratio:
            return f"resize_small({_sides(self.resized)}{method}{rule})|{crop}"
        resize = f"resize({_sides(self.resized)}{method})"
        return resize if self.resized == self.size else f"{resize}|{crop}"


def _sides(size: int | tuple[int, int]) -> str:
    """Format a size as in specs, with one number for a square."""
    return str(size if isinstance(size, int) or size[0] != size[1] else size[0])


def from_spec(spec: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing | None:
    """Parse a preprocess spec; return None if other libraries' configs cannot express it."""
    try:
        steps = [_step(text) for text in spec.split("|")]
    except (SyntaxError, ValueError, KeyError):
        return None
    names = [name for name, _ in steps]
    if names not in _FORMS:
        return None
    rules = {arguments.get("rule", "big_vision") for name, arguments in steps if name != "resize"}
    size = _pair(steps[-1][1]["size"])
    first = steps[0][1] if names[0] != "central_crop" else {}
    method = first.get("method", "bilinear")
    if len(rules) > 1 or method not in get_args(Interpolation):
        return None
    resized, keep_ratio = first.get("size"), names[0] == "resize_small"
    if resized is not None and not keep_ratio:
        resized = _pair(resized)
    return Preprocessing(size, resized, method, mean, std, keep_ratio, rules.pop() if rules else "big_vision")


def _step(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and arguments of one operation; raises ValueError or KeyError if it is not in _ARGUMENTS."""
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(text)
    names = _ARGUMENTS[call.func.id]
    given = dict(zip(names, map(ast.literal_eval, call.args), strict=False))
    return call.func.id, given | {key.arg: ast.literal_eval(key.value) for key in call.keywords if key.arg}


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model.

    Attributes:
      model: spec of the network.
      params: parameters with this library's names.
      preprocessing: how its images are prepared.
      class_names: names of the classes in order, or None if the source does not list them.
      origin: the reference that was read, for messages.
      posemb, patches: how the authors resize position and patch embeddings.
      notes: assumptions made because the source does not say, one sentence each.
      task: spec of the task if there is more than a classifier; params are then the task's, plus "batch_stats/...".
      folder: the folder of its files, including a tokenizer's.
    """

    model: dict[str, Any]
    params: FlatParams
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    origin: str
    posemb: PosembMethod = "bilinear"
    patches: PatchMethod = "bilinear"
    notes: tuple[str, ...] = ()
    task: dict[str, Any] | None = None
    folder: Path | None = None
