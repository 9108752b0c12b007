"""Keeps count of the images that cannot be read, and stops where they are too many."""

import logging
import threading

import numpy as np

from vit_jax.data.examples import Examples
from vit_jax.data.source import Source, UnreadableImage
from vit_jax.types import UserError

# So many images, evenly spread, are read at the start to find a shape that differs before anything is compiled.
PROBES = 8


class Reader:
    """The examples of a source, used by all threads at once.

    `unreadable` maps the names of the images that could not be read to the reasons. Up to `max_unreadable` of the
    data set, and one image in any case, may be so; one more raises UserError.
    """

    def __init__(self, source: Source, preprocess: str, cache_mb: int, max_unreadable: float):
        self.unreadable: dict[str, str] = {}
        self._examples = Examples(source, preprocess, cache_mb * 2**20)
        self.source, self._max_unreadable = self._examples.source, max_unreadable
        self._skip: set[int] = set()
        self._lock = threading.Lock()
        images = (self.read(index, 0, 0) for index in range(len(source)))
        first = next((image for image in images if image is not None), None)
        if first is None:
            raise self.too_many_unreadable()
        self.image_shape = self._examples.image_shape = first.shape
        for index in range(0, len(source), max(1, len(source) // PROBES)):
            self.read(index, 0, 0)

    def read(self, index: int, seed: int, position: int) -> np.ndarray | None:
        """The preprocessed image, augmented as (seed, position) say; None if it cannot be read."""
        if index in self._skip:
            return None
        try:
            return self._examples.read(index, seed, position)
        except UnreadableImage as error:
            self.record(index, str(error))
            return None

    def record(self, index: int, reason: str) -> None:
        """Counts an image as unreadable, once; raises UserError where it is one too many."""
        name = self.source.name(index)
        with self._lock:
            if index in self._skip:
                return
            self._skip.add(index)
            self.unreadable[name] = reason
            too_many = len(self._skip) > max(1, round(self._max_unreadable * len(self.source), 6))
        logging.warning("Unreadable image %s: %s", name, reason)
        if too_many:
            raise self.too_many_unreadable()

    def too_many_unreadable(self) -> UserError:
        """The error that stops a run, naming the count, the share allowed and three of the files."""
        files = "; ".join(f"{name} ({reason})" for name, reason in list(self.unreadable.items())[:3])
        return UserError(
            f"Found {len(self.unreadable)} unreadable images among {len(self.source)}, expected at most "
            f"{self._max_unreadable:.2%}: repair or remove them, or raise max_unreadable. For example: {files}"
        )
