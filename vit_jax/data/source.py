"""Define the interface between data sets and the pipeline: examples with described fields, read in any order."""

import abc
import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

Example = dict[str, Any]
# (left, top, right, bottom) in whole pixels of the upright image.
Box = tuple[int, int, int, int]
# Draws a box for an image of (height, width).
Draw = Callable[[int, int], Box]


def cut(image: Shaped[np.ndarray, "h w ..."], box: Box) -> Shaped[np.ndarray, "h2 w2 ..."]:
    """Return the part of an image, or of a map of its pixels, inside a box."""
    left, top, right, bottom = box
    return image[top:bottom, left:right]


class UnreadableImage(Exception):
    """Signals a damaged or missing field of an example, with the reason. The pipeline replaces or masks the example."""


@dataclasses.dataclass(frozen=True)
class Field:
    """Describes the values under one key of an example."""


@dataclasses.dataclass(frozen=True)
class Image(Field):
    """A picture, uint8 [h, w, c], or an `Encoded` that decodes to one."""


def normalized(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in composed Unicode (NFC), because macOS writes decomposed file names, which look the same."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)


@dataclasses.dataclass(frozen=True)
class Named(Field):
    """A field of classes or numbers, with names in composed Unicode."""

    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", normalized(self.class_names))


@dataclasses.dataclass(frozen=True)
class Label(Named):
    """One class, as its position in class_names."""


@dataclasses.dataclass(frozen=True)
class Labels(Named):
    """Several classes: 0 or 1 for each of class_names, float32 [n]."""


@dataclasses.dataclass(frozen=True)
class Numbers(Named):
    """A number for each of the names, float32 [n]. example: one of them as text, for messages."""

    example: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """One or more strings that a tokenizer turns into numbers; untokenized strings are dropped."""


@dataclasses.dataclass(frozen=True)
class Tokens(Field):
    """Token ids of one text, int32 [n], or of several, int32 [k, n]; all are below vocab_size unless that is 0."""

    vocab_size: int = 0


# The class of pixels that losses and metrics ignore.
IGNORED = 255


@dataclasses.dataclass(frozen=True)
class Segments(Named):
    """The class of each pixel, uint8 [h, w], or an `Encoded` that decodes to it; 255 is ignored.

    own_size: they keep the size of the example's original image, whatever happens to the image afterwards.
    """

    class_names: tuple[str, ...] = ()
    own_size: bool = dataclasses.field(default=False, compare=False)


@dataclasses.dataclass(frozen=True)
class PixelNumbers(Field):
    """A number for each pixel, such as its depth, float32 [h, w], or an `Encoded` that decodes to it; NaN is unknown.

    own_size: see Segments.
    """

    own_size: bool = dataclasses.field(default=False, compare=False)


Fill = int | float
# Pixel maps that are never interpolated, with the fill value for the area outside the image.
FILLS: Mapping[type[Field], Fill] = {Segments: IGNORED, PixelNumbers: math.nan}


@dataclasses.dataclass(frozen=True)
class Boxes(Named):
    """Boxes (left, top, right, bottom) in pixels, float32 [n, 4]; their classes are in a separate field, BoxLabels."""

    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class BoxLabels(Named):
    """The class of each box, int32 [n], as its position in class_names; -1 for padding rows."""

    class_names: tuple[str, ...] = ()


# By their names, as stored in records.
KINDS: Mapping[str, type[Field]] = {
    kind.__name__: kind
    for kind in (Field, Image, Label, Labels, Numbers, Text, Tokens, Segments, PixelNumbers, Boxes, BoxLabels)
}
Fields = Mapping[str, Field]


def class_names_of(fields: Fields) -> tuple[str, ...]:
    """Return the class names or numbers of an example's first label, else of its pixels or boxes, else ()."""
    kinds: tuple[Any, ...] = (Label | Labels | Numbers, Segments | BoxLabels)
    return next((f.class_names for kind in kinds for f in fields.values() if isinstance(f, kind)), ())


class Encoded(abc.ABC):
    """An undecoded image or pixel map: a transform asks for all of it, or for one box."""

    @abc.abstractmethod
    def decode(self) -> Shaped[np.ndarray, "h w ..."]:
        """Return the pixels, which the caller must not modify; raises UnreadableImage."""

    def decode_part(self, draw: Draw) -> Shaped[np.ndarray, "h w ..."]:
        """Return the pixels of `decode()` in the box that `draw` returns for its size.

        A subclass may skip the rest of the file, so that damage outside the box goes unseen.
        """
        image = self.decode()
        return cut(image, draw(image.shape[0], image.shape[1]))


def decoded(value: Any) -> Any:
    """Return the pixels of an `Encoded`, and anything else unchanged."""
    return value.decode() if isinstance(value, Encoded) else value


class Source(abc.ABC):
    """Random access to examples. Safe to use from several threads."""

    fields: Fields

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """Return the fields of examples of these classes, which `vit plan` assumes where the data cannot be opened."""
        return {"image": Image(), "label": Label(class_names)}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes or numbers of the first label."""
        return class_names_of(self.fields)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Return the example with the keys of `fields`, images still encoded; raises UnreadableImage."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return a file path or another stable name, for messages and reports."""

    def left_out(self) -> dict[str, str]:
        """Return files next to the examples that are not examples, with the reason; only the first if many."""
        return {}


class Spread(Source):
    """At most `count` examples of another source, evenly spread over it, since its order is often by class."""

    def __init__(self, source: Source, count: int):
        self.source, self._count = source, min(count, len(source))
        self.fields = source.fields

    def __len__(self) -> int:
        return self._count

    def _position(self, index: int) -> int:
        return index * len(self.source) // self._count

    def __getitem__(self, index: int) -> Example:
        return self.source[self._position(index)]

    def name(self, index: int) -> str:
        return self.source.name(self._position(index))
