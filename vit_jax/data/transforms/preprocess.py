"""Host preprocessing as a short, readable spec: "inception_crop(224)|flip" or "resize_small(256)|central_crop(224)".

Every operation takes and gives uint8 [h, w, c] and draws what it needs from the generator of its example. Values reach
[-1, 1] only on the device. `size` is one int or (height, width).
"""

import ast
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vit_jax.config.kinds import cast, fits, hint_name
from vit_jax.data.transforms import augment, ops, policies
from vit_jax.types import UserError

OPS = {
    op.__name__: op
    for op in (
        *(ops.inception_crop, ops.resize_small, ops.central_crop, ops.resize, ops.flip, ops.pad_crop, ops.rotate),
        *(ops.simple_crop, augment.grayscale, augment.color_jitter, augment.three_augment, augment.random_erasing),
        *(policies.randaug, policies.rand_augment, policies.autoaugment),
    )
}


class Preprocess:
    """The operations of a spec as one function of (image, generator).

    `crop` is the random crop that they begin with, or None: who decodes its part of an image alone gives that part to
    `after_box`, with the generator that drew its box.
    """

    def __init__(self, steps: Sequence[ops.Op]):
        self._steps = steps
        self.crop = steps[0] if steps and isinstance(steps[0], ops.RandomCrop) else None

    def __call__(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        for step in self._steps:
            image = step(image, rng)
        return image

    def after_box(self, part: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        """What the call gives for the image whose part, cut as `crop.box` said, is given."""
        assert self.crop is not None
        image = self.crop.resized(part)
        for step in self._steps[1:]:
            image = step(image, rng)
        return image


def parse(spec: str) -> Preprocess:
    """Turns a spec into one function of (image, generator); an empty spec leaves images as they are.

    Only literals are read, nothing is evaluated. Raises UserError naming the spec, the position and the remedy.
    """
    return Preprocess(parse_steps(spec, OPS, spec.split("|") if spec.strip() else []))


def parse_steps(spec: str, table: Mapping[str, Callable[..., Any]], texts: Sequence[str], before: int = 0) -> list[Any]:
    """What `texts`, operations of a spec after the first `before` ones, name in a table of makers of operations."""
    return [_parse_op(spec, table, position, text) for position, text in enumerate(texts, before + 1)]


def _parse_op(spec: str, table: Mapping[str, Callable[..., Any]], position: int, text: str) -> Any:
    where = f"operation {position} of preprocess {spec!r}"
    name, args, kwargs = _read_call(where, text.strip())
    if name not in table:
        if name in OPS:
            raise UserError(
                f"Found {name!r} as {where}, expected one of {', '.join(table)} on the devices: leave it out."
            )
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(table)}."
        raise UserError(f"Found the unknown operation {name!r} as {where}: {advice}")
    signature = inspect.signature(table[name])
    usage = f"expected {name}({', '.join(map(str, _plain(signature)))})"
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"Found {text.strip()!r} as {where}, {usage}: {error}.") from None
    hints = typing.get_type_hints(table[name])
    for key, value in bound.arguments.items():
        if not fits(value, hints[key]):
            raise UserError(f"Found {key}={value!r} in {where}, {usage}: make {key} {hint_name(hints[key])}.")
        bound.arguments[key] = cast(value, hints[key])
    try:
        return table[name](*bound.args, **bound.kwargs)
    except ValueError as error:
        raise UserError(f"Found {text.strip()!r} as {where}: {error}.") from None


def _plain(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]


def _read_call(where: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Splits "name(1, key=2)" into its name and literal arguments; a bare name is a call without any."""
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
            if len(kwargs) == len(node.keywords):
                return node.func.id, [ast.literal_eval(arg) for arg in node.args], kwargs
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    raise UserError(
        f"Found {text!r} as {where}, expected name(literal, key=literal) such as resize_small(256): "
        "write operations separated by '|'."
    )
