"""Reads and preprocesses single examples, and keeps count of the images that cannot be read."""

import logging
import threading

import numpy as np

from vit_jax.data.preprocess import parse
from vit_jax.data.source import Cached, Source, UnreadableImage
from vit_jax.types import UserError

# So many images, evenly spread, are read at the start to find a shape that differs before anything is compiled.
PROBES = 8


class Reader:
    """A source behind a cache and a preprocessing spec, used by all worker threads at once.

    `unreadable` maps the names of the images that could not be read to the reasons. Up to `max_unreadable` of the
    data set, and one image in any case, may be so; one more raises UserError.
    """

    def __init__(self, source: Source, preprocess: str, cache_mb: int, max_unreadable: float):
        self.source = Cached(source, cache_mb * 2**20)
        self.unreadable: dict[str, str] = {}
        self._preprocess, self._max_unreadable = parse(preprocess), max_unreadable
        self._skip: set[int] = set()
        # Images that were once decoded whole without damage: of these a part may be decoded alone. So what counts as
        # unreadable depends on the file, not on the crop.
        self._sound = np.zeros(len(source), bool)
        self._lock, self._local = threading.Lock(), threading.local()
        images = (self._load(index, 0, 0) for index in range(len(source)))
        first = next((image for image in images if image is not None), None)
        if first is None:
            raise self.too_many_unreadable()
        self.image_shape = first.shape
        for index in range(0, len(source), max(1, len(source) // PROBES)):
            self.read(index, 0, 0)

    def read(self, index: int, seed: int, position: int) -> np.ndarray | None:
        """The preprocessed image, augmented as (seed, position) say; None if it cannot be read."""
        image = self._load(index, seed, position)
        if image is not None and image.shape != self.image_shape:
            raise UserError(
                f"Found shape {image.shape} for {self.source.name(index)} after preprocessing, expected "
                f"{self.image_shape} as for the others: end the preprocessing with a resize or crop to a fixed size."
            )
        return image

    def _load(self, index: int, seed: int, position: int) -> np.ndarray | None:
        if index in self._skip:
            return None
        rng, crop = self._generator(seed, position), self._preprocess.crop
        try:
            if crop is not None and self._sound[index]:
                part = self.source.part(index, lambda height, width: crop.box(height, width, rng))
                return self._preprocess.after_box(part, rng)
            image = self.source.image(index)
        except UnreadableImage as error:
            self._record(index, str(error))
            return None
        self._sound[index] = True
        return self._preprocess(image, rng)

    def _generator(self, seed: int, position: int) -> np.random.Generator:
        """The calling thread's generator, at the start of the stream keyed by (seed, position).

        Philox is counter-based: any key gives an independent stream. Setting one is ten times as fast as making one.
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

    def _record(self, index: int, reason: str) -> None:
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
