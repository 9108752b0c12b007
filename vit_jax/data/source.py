"""What every data set looks like to the pipeline: labelled images that can be read in any order."""

import abc
import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

# One class, or a number for each name, float32 [n].
Label = int | np.ndarray
# (left, top, right, bottom) in whole pixels of the upright image.
Box = tuple[int, int, int, int]
# Draws the box for an image of (height, width).
Draw = Callable[[int, int], Box]


def cut(image: UInt8[np.ndarray, "h w c"], box: Box) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The part of an image in a box."""
    left, top, right, bottom = box
    return image[top:bottom, left:right]


class UnreadableImage(Exception):
    """An image that is damaged or missing; its message says why. The pipeline replaces it or masks it."""


class Source(abc.ABC):
    """Random access to labelled images. Safe to use from several threads at once."""

    class_names: tuple[str, ...]
    # () where an example has one class, (n,) where it has a number for each of the n names in class_names.
    label_shape: tuple[int, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def label(self, index: int) -> Label:
        """The position of the example's class in `class_names`, or a number for each. Cheap after `image(index)`."""

    @abc.abstractmethod
    def image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The decoded image, not to be written to; raises UnreadableImage."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """A file path or another stable name, for messages and reports."""

    def part(self, index: int, draw: Draw) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of `image(index)` in the box that `draw` gives for its size.

        A source may be quicker at this, by not looking at the rest: then damage outside the box may go unseen.
        """
        image = self.image(index)
        return cut(image, draw(image.shape[0], image.shape[1]))


class Spread(Source):
    """At most `count` examples of another source, evenly spread over it, as its order is often that of the classes."""

    def __init__(self, source: Source, count: int):
        self.source, self._count = source, min(count, len(source))
        self.class_names, self.label_shape = source.class_names, source.label_shape

    def __len__(self) -> int:
        return self._count

    def _place(self, index: int) -> int:
        return index * len(self.source) // self._count

    def label(self, index: int) -> Label:
        return self.source.label(self._place(index))

    def name(self, index: int) -> str:
        return self.source.name(self._place(index))

    def image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return self.source.image(self._place(index))

    def part(self, index: int, draw: Draw) -> UInt8[np.ndarray, "h w c"]:
        return self.source.part(self._place(index), draw)


class Cached(Source):
    """Keeps the decoded images of another source in memory until `max_bytes` are spent.

    Nothing is ever evicted: with a shuffled order every image is equally likely to be asked for next, so the first
    ones to come are as good as any, and a data set that fits is decoded once.
    """

    def __init__(self, source: Source, max_bytes: int):
        self.source = source
        self.class_names, self.label_shape = source.class_names, source.label_shape
        self._free = max_bytes
        self._images: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def label(self, index: int) -> Label:
        return self.source.label(index)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        cached = self._images.get(index)  # one dict look-up is atomic: the common path takes no lock
        if cached is not None:
            return cached
        image = self.source.image(index)
        image.setflags(write=False)
        with self._lock:
            if index not in self._images and image.nbytes <= self._free:
                self._free -= image.nbytes
                self._images[index] = image
        return image

    def part(self, index: int, draw: Draw) -> UInt8[np.ndarray, "h w c"]:
        cached = self._images.get(index)
        return self.source.part(index, draw) if cached is None else cut(cached, draw(*cached.shape[:2]))
