"""Parse transforms of examples from a short spec: "inception_crop(224)|flip" or "resize_small(256)|central_crop(224)".

A transform is a function (example, generator) -> example that draws from the generator of its example. A geometric
transform draws once and maps every image, all segments and all boxes. Images stay uint8 [h, w, c]; they are normalised
on the device. `size` is one int or (height, width). "my.module:Name(1, 2)" names a transform from any module.
"""

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vit_jax.config import other_libraries
from vit_jax.config.factory import quoted
from vit_jax.config.hints import cast, fits, hint_name, hints_of
from vit_jax.data import source
from vit_jax.data.source import Encoded, Example, Fields, decoded
from vit_jax.data.transforms import augment, dense, ops, policies, sequence, texts, views
from vit_jax.data.transforms.ops import Geometric, RandomCrop
from vit_jax.types import UserError

IMAGE_OPS = {
    op.__name__: op
    for op in (
        *(augment.grayscale, augment.color_jitter, augment.three_augment, augment.random_erasing),
        *(augment.gaussian_blur, augment.solarize, policies.randaug, policies.rand_augment, policies.autoaugment),
    )
}
OPS = IMAGE_OPS | {
    op.__name__: op
    for op in (
        *(ops.inception_crop, ops.resize_small, ops.central_crop, ops.resize, ops.fit, ops.flip, ops.pad_crop),
        *(ops.rotate, ops.random_resized_crop, ops.simple_crop, ops.resize_inside, ops.scale_crop),
        *(views.views, views.maybe, sequence.patchify, sequence.drop, texts.tokenize),
        *(dense.own_size, dense.pad, dense.pad_boxes),
    )
}
# A spec may come with a downloaded model, and each operation runs for each image.
MOST_LETTERS = 10_000
IMAGE: Fields = {"image": source.Image()}
# A name from any module, before its arguments.
ABSOLUTE = re.compile(r"\s*((?:\w+\.)*\w+):(\w+)\s*(\(.*)?$", re.DOTALL)


class OnImages:
    """A change of image colours that does not move pixels."""

    def __init__(self, op: ops.Op):
        self._op = op

    def __call__(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
        return self._op(image, rng)


class Transforms:
    """The transforms of a spec as one function of (example, generator), for examples with these fields.

    `fields` are the fields of the result. Raises UserError if a transform reads a key that the examples lack.
    """

    def __init__(self, steps: Sequence[tuple[str, Any]], fields: Fields = IMAGE):
        self._steps: list[tuple[str, Any, Fields]] = []
        alone = fields == IMAGE
        for text, step in steps:
            if alone and isinstance(step, sequence.Drop | dense.PadBoxes):  # a single image has no labels
                continue
            reads = getattr(step, "reads", ())
            lacking = [key for key in reads if key not in fields]
            if lacking:
                raise UserError(
                    f"The transform {text} reads {', '.join(map(repr, lacking))}; found examples with "
                    f"{', '.join(map(repr, fields))}: take another transform, or a source with that field."
                )
            self._steps.append((text, step, fields))
            fields = step.fields(fields) if hasattr(step, "fields") else fields
        self.fields = fields

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        for text, step, fields in self._steps:
            if isinstance(step, Geometric):
                example = _mapped(step, example, fields, rng)
            elif isinstance(step, OnImages):
                images = {key: step(decoded(example[key]), rng) for key in _keys(example, fields, source.Image)}
                example = {**example, **images}
            else:
                example = step(example, rng)
                if not isinstance(example, dict):
                    raise UserError(
                        f"The transform {text} returns a {type(example).__name__}; expected a function (example, generator) -> "
                        "example, where an example is a dict."
                    )
        return {key: decoded(value) for key, value in example.items()}

    @property
    def tokenize(self) -> texts.Tokenize | None:
        """The transform that tokenizes captions, or None."""
        return next((step for _, step, _ in self._steps if isinstance(step, texts.Tokenize)), None)

    def image(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator | None = None) -> np.ndarray:
        """Transform a single image."""
        made = self({"image": image}, np.random.default_rng(0) if rng is None else rng)
        if "image" not in made:
            steps = "|".join(text for text, _, _ in self._steps)
            raise UserError(
                f"{steps!r} makes {', '.join(map(repr, made)) or 'nothing'} of an image; expected an image."
            )
        return made["image"]


def _keys(example: Example, fields: Fields, *kinds: type) -> list[str]:
    return [key for key in example if isinstance(fields.get(key), kinds)]


def _mapped(step: Geometric, example: Example, fields: Fields, rng: np.random.Generator) -> Example:
    """Apply one draw of a geometric transform to all spatial fields of an example."""
    pictures = [key for key in _keys(example, fields, source.Image, *source.FILLS) if not _keeps_size(fields[key])]
    if not pictures:
        return example
    drawn = _Drawn(step, rng)
    result = dict(example)
    for key in pictures:
        value, fill = example[key], source.FILLS.get(type(fields[key]))
        drawn.key = key
        if isinstance(step, RandomCrop) and isinstance(value, Encoded):
            mapped = step.resized(_planes(value.decode_part(drawn)), fill)
        else:
            pixels = _planes(decoded(value))
            mapped = step.image(pixels, drawn(*pixels.shape[:2]), fill)
        result[key] = mapped if fill is None else mapped[:, :, 0]
    for key in _keys(example, fields, source.Boxes):
        size, boxes = result[pictures[0]].shape[:2], np.asarray(example[key], np.float32).reshape(-1, 4)
        result[key] = step.boxes(boxes, drawn.draw, drawn.size, size)
    return result


class _Drawn:
    """One draw of a geometric transform, for the size of the first image; raises UserError if another one differs."""

    def __init__(self, step: Geometric, rng: np.random.Generator):
        self._step, self._rng = step, rng
        self.key = self.first = ""
        self.size: tuple[int, int] = (0, 0)
        self.draw: Any = None

    def __call__(self, height: int, width: int) -> Any:
        if not self.first:
            self.first, self.size, self.draw = self.key, (height, width), self._step.draw(height, width, self._rng)
        if self.size != (height, width):
            raise UserError(
                f"Found {self.key!r} of {height} x {width} pixels beside {self.first!r} of {self.size[0]} x {self.size[1]}; "
                "expected one size for all images and segments of an example."
            )
        return self.draw


def _keeps_size(field: source.Field) -> bool:
    return getattr(field, "own_size", False)


def _planes(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def parse(spec: str, fields: Fields = IMAGE) -> Transforms:
    """Parse a spec into one function of (example, generator); an empty spec leaves examples unchanged.

    Only literals are read, nothing is evaluated. Raises UserError with the spec, the position and the remedy.
    """
    texts = split_spec(spec)
    return Transforms(list(zip(texts, parse_steps(spec, OPS, texts), strict=True)), fields)


def without_texts(spec: str) -> str:
    """Return a spec without its operations on captions, for a single image."""
    return "|".join(part for part in split_spec(spec) if part.partition("(")[0].strip() != texts.tokenize.__name__)


def split_spec(spec: str) -> list[str]:
    """Return the operations of a spec: its parts between "|" outside quotes and brackets."""
    if len(spec) > MOST_LETTERS:
        raise UserError(
            f"Found a preprocess of {len(spec):,} letters, expected at most {MOST_LETTERS:,}: {quoted(spec, 60)}"
        )
    parts, depth, quote, escaped = [""], 0, "", False
    for character in spec:
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        depth += 0 if quote else (character in "([{") - (character in ")]}")
        if character == "|" and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if spec.strip() else []


def parse_steps(spec: str, table: Mapping[str, Callable[..., Any]], texts: Sequence[str], before: int = 0) -> list[Any]:
    """Build the operations `texts` of a spec, which follow its first `before` ones, from a table of makers."""
    return [_parse_op(spec, table, position, text) for position, text in enumerate(texts, before + 1)]


def _parse_op(spec: str, table: Mapping[str, Callable[..., Any]], position: int, text: str) -> Any:
    where = f"operation {position} of preprocess {quoted(spec)}"
    absolute = ABSOLUTE.match(text) if table is OPS else None
    if absolute:
        table = {absolute[2]: _imported(where, absolute[1], absolute[2])}
        text = absolute[2] + (absolute[3] or "")
    name, args, kwargs = _read_call(where, text)
    if name not in table:
        if name in OPS:
            raise UserError(
                f"Found {name!r} as {where}, expected one of {', '.join(table)} on the devices: leave it out."
            )
        if hint := other_libraries.transform_hint(name, str(args[0]) if args and fits(args[0], int | tuple) else ""):
            raise UserError(f"Found {name!r} as {where}, which is another library's transform: {hint}.")
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(table)}."
        raise UserError(f"Found the unknown operation {name!r} as {where}: {advice}")
    maker = table[name]
    signature = inspect.signature(maker)
    usage = f"expected {name}({', '.join(map(str, _plain(signature)))})"
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"Found {quoted(text.strip())} as {where}, {usage}: {error}.") from None
    hints = hints_of(maker)
    for key, value in bound.arguments.items():
        if not fits(value, hints.get(key, Any)):
            raise UserError(f"Found {key}={value!r} in {where}, {usage}: make {key} {hint_name(hints[key])}.")
        bound.arguments[key] = cast(value, hints.get(key, Any))
    try:
        made = maker(*bound.args, **bound.kwargs)
    except ValueError as error:
        raise UserError(f"Found {quoted(text.strip())} as {where}: {error}.") from None
    if not callable(made):
        raise UserError(
            f"Found {quoted(text.strip())} as {where}, which makes a {type(made).__name__}: expected a function."
        )
    return OnImages(made) if maker is IMAGE_OPS.get(name) else made


def _imported(where: str, module: str, name: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"Found '{module}:{name}' as {where}, which cannot be imported ({error}): expected 'package.module:Name'."
        ) from None


def _plain(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]


def _read_call(where: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split "name(1, key=2)" into its name and literal arguments; a bare name is a call without arguments."""
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
        f"Found {quoted(text)} as {where}, expected name(literal, key=literal) such as resize_small(256): "
        "write operations separated by '|'."
    )
