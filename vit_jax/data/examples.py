"""Read and transform single examples, augmented as a function of (seed, position), and count the unreadable ones."""

import logging
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.source import (
    FILLS,
    Boxes,
    BoxLabels,
    Draw,
    Encoded,
    Example,
    Image,
    Label,
    Source,
    UnreadableImage,
    cut,
)
from vit_jax.data.transforms.preprocess import parse
from vit_jax.printable import line
from vit_jax.types import UserError

Arrays = dict[str, np.ndarray]
# Number of examples, spread evenly over the data set, read at the start to find differing shapes before compilation.
PROBES = 8


class Array(NamedTuple):
    """Shape and dtype of the array under one key of an example. Unlike jax.Array, it needs no JAX in data workers."""

    shape: tuple[int, ...]
    dtype: str


Layout = Mapping[str, Array]


class Examples:
    """A source with a cache of `cache_bytes` and a transform spec, shared by all threads.

    layout: the arrays of every transformed example, or None while it is unknown.

    Nothing is ever evicted from the cache: in shuffled order every example is equally likely to come next, so the first
    ones are as good as any, and a data set that fits is decoded once.
    """

    def __init__(self, source: Source, preprocess: str, cache_bytes: int, layout: Layout | None = None):
        self.source, self.layout = source, layout
        self._transforms = parse(preprocess, source.fields)
        self._free = cache_bytes
        self._cache: dict[int, Example] = {}
        # Crops may be partially decoded only after the whole image was decoded once without error, so that whether an
        # example counts as unreadable depends on its file, not on the crop.
        self._sound = np.zeros(len(source), bool)
        self._lock = threading.Lock()
        self._local = threading.local()

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of the examples after the transforms."""
        return self._transforms.fields

    def read(self, index: int, seed: int, position: int) -> Arrays:
        """Return the arrays of an example, augmented according to (seed, position).

        Raises UnreadableImage, or UserError if an array has another shape than in the other examples.
        """
        rng = self._generator(seed, position)
        cached = self._cache.get(index)  # one dict look-up is atomic: the common path takes no lock
        opened = cached if cached is not None else self._open(index)
        arrays = _arrays(self._transforms(dict(opened), rng))
        if cached is None:
            self._sound[index] = True
            self._remember(index, opened)
        if self.layout is not None:
            self._check(arrays, index, self.layout)
        return arrays

    def _open(self, index: int) -> Example:
        sound, example = bool(self._sound[index]), self.source[index]
        if not isinstance(example, dict) or set(example) != set(self.source.fields):
            found = f"the keys {sorted(example)}" if isinstance(example, dict) else f"a {type(example).__name__}"
            raise UserError(
                f"{type(self.source).__name__} returns {found} for {line(self.source.name(index))}; expected a dict with the "
                f"keys of its `fields`: {sorted(self.source.fields)}."
            )
        for key, field in self.source.fields.items():
            if isinstance(field, Label) and not 0 <= int(example[key]) < len(field.class_names):
                raise UserError(
                    f"{type(self.source).__name__} returns the {key} {example[key]} for {line(self.source.name(index))}; expected "
                    f"a position in its {len(field.class_names)} class names."
                )
        return {key: _Remembered(x, sound) if isinstance(x, Encoded) else x for key, x in example.items()}

    def _remember(self, index: int, opened: Example) -> None:
        """Keep a decoded example in the cache while there is room."""
        if any(isinstance(value, _Remembered) and value.partly for value in opened.values()):
            return
        decoded = {
            key: value.pixels if isinstance(value, _Remembered) and value.pixels is not None else value
            for key, value in opened.items()
        }
        size = sum(value.nbytes for value in decoded.values() if isinstance(value, np.ndarray))
        with self._lock:
            if index not in self._cache and size <= self._free:
                self._free -= size
                for key, value in decoded.items():
                    if value is not opened[key]:  # decoded here, not an array of the source
                        value.setflags(write=False)
                self._cache[index] = decoded

    def _check(self, arrays: Arrays, index: int, layout: Layout) -> None:
        found = layout_of(arrays)
        for key in dict.fromkeys([*found, *layout]):  # in layout order, so that the message is always the same
            if found.get(key) == layout.get(key):
                continue
            field = self._transforms.fields.get(key)
            if getattr(field, "own_size", False):
                remedy = "give own_size a size that all images fit into"
            elif isinstance(field, (Image, *FILLS)):
                mixed = key in found and key in layout and tuple(found[key].shape)[:-1] == tuple(layout[key].shape)[:-1]
                remedy = (
                    "give all images as many channels and the same dtype in the source"
                    if mixed else "end the preprocessing with a resize or crop to a fixed size"
                )  # fmt: skip
            elif isinstance(field, Boxes | BoxLabels):
                remedy = f"end the preprocessing with pad_boxes(100), or leave it out with drop({key!r})"
            else:
                remedy = f"pad it to a fixed length in the source, or leave it out with drop({key!r})"
            here, there = (f"{tuple(x[key].shape)} {x[key].dtype}" if key in x else "nothing" for x in (found, layout))
            raise UserError(
                f"Found {here} as {key!r} of {line(self.source.name(index))} after preprocessing, expected {there} as for the "
                f"other examples: {remedy}."
            )

    def _generator(self, seed: int, position: int) -> np.random.Generator:
        """Return the calling thread's generator, reset to the start of the stream keyed by (seed, position).

        Philox is counter-based: any key gives an independent stream. Setting its state is ten times as fast as creating
        one.
        """
        if not hasattr(self._local, "generator"):
            self._local.generator = np.random.Generator(np.random.Philox(key=0))
        zeros = np.zeros(4, np.uint64)
        self._local.generator.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {"counter": zeros, "key": np.array([seed, position], np.uint64)},
            "buffer": zeros,
            "buffer_pos": 4,  # nothing buffered
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._local.generator


class _Remembered(Encoded):
    """An encoded image that keeps its decoded pixels; a part is decoded alone only if the whole was `sound` before."""

    def __init__(self, encoded: Encoded, sound: bool):
        self._encoded, self._sound = encoded, sound
        self.pixels: np.ndarray | None = None
        self.partly = False

    def decode(self) -> np.ndarray:
        if self.pixels is None:
            self.pixels = self._encoded.decode()
        return self.pixels

    def decode_part(self, draw: Draw) -> np.ndarray:
        if self._sound and self.pixels is None:
            self.partly = True
            return self._encoded.decode_part(draw)
        image = self.decode()
        return cut(image, draw(*image.shape[:2]))


def _arrays(example: Example) -> Arrays:
    """Return the arrays that are sent to the devices: numbers; strings and other objects are left out."""
    arrays = {}
    for key, value in example.items():
        array = np.asarray(value)
        if array.dtype.kind in "iu" and array.dtype != np.uint8:
            array = array.astype(np.int32)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32)
        if array.dtype.kind in "biuf":
            arrays[key] = array
    return arrays


def layout_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """Return the shape and dtype of each array."""
    return {key: Array(tuple(array.shape), array.dtype.name) for key, array in arrays.items()}


class Reader:
    """The examples of a source, with a count of the unreadable ones, shared by all threads.

    `unreadable` maps the names of unreadable examples to the reasons. At most the fraction `max_unreadable` of the data
    set, and in any case one example, may be unreadable; one more raises UserError. `layout` is found by probing: the
    first readable example and PROBES more, spread over the data set, must agree.
    """

    def __init__(self, source: Source, preprocess: str, cache_mb: int, max_unreadable: float, remedy: str):
        self.remedy = remedy
        self.unreadable: dict[str, str] = {}
        self._examples = Examples(source, preprocess, cache_mb * 2**20)
        self.source, self.fields, self.max_unreadable = source, self._examples.fields, max_unreadable
        self._skip: set[int] = set()
        self._lock = threading.Lock()
        examples = (self.read(index, 0, index) for index in range(len(source)))
        if not len(source):
            raise UserError(
                f"Found no examples in {type(source).__name__}, expected at least one: check its path and split."
            )
        first = next((example for example in examples if example is not None), None)
        if first is None:
            raise self.too_many_unreadable()
        self.layout = self._examples.layout = layout_of(first)
        for key, field in self.fields.items():
            found = self.layout.get(key)
            if isinstance(field, Image) and found and (found.dtype != "uint8" or len(found.shape) != 3):
                raise UserError(
                    f"Found {key!r} of shape {found.shape} and dtype {found.dtype} after preprocessing, expected an image uint8 "
                    "[h, w, c]: scale it to 0 to 255; the task normalises it on the device."
                )
        for index in range(0, len(source), max(1, len(source) // PROBES)):
            self.read(index, 0, index)

    def read(self, index: int, seed: int, position: int) -> Arrays | None:
        """Return the arrays of an example, augmented according to (seed, position), or None if it is unreadable."""
        if not self.is_readable(index):
            return None
        try:
            return self._examples.read(index, seed, position)
        except UnreadableImage as error:
            self.record(index, str(error))
            return None

    def is_readable(self, index: int) -> bool:
        """Return False if an example was found unreadable before."""
        return index not in self._skip

    def record(self, index: int, reason: str) -> None:
        """Count an example as unreadable, once; raises UserError if there are now too many."""
        name = line(self.source.name(index))
        with self._lock:
            if index in self._skip:
                return
            self._skip.add(index)
            self.unreadable[name] = reason
            too_many = len(self._skip) > max(1, round(self.max_unreadable * len(self.source), 6))
        logging.getLogger("vit_jax").warning("Unreadable image %s: %s", name, reason)
        if too_many:
            raise self.too_many_unreadable()

    def too_many_unreadable(self) -> UserError:
        """Return the error that stops a run, with the count, the allowed fraction and three of the files."""
        files = "; ".join(f"{name} ({reason})" for name, reason in list(self.unreadable.items())[:3])
        return UserError(
            f"Found {len(self.unreadable)} unreadable images among {len(self.source)}, expected at most "
            f"{self.max_unreadable:.2%}: {self.remedy}. For example: {files}"
        )
