"""Single examples: read, preprocessed and augmented as their place in the global order says."""

import threading

import numpy as np

from vit_jax.data.source import Cached, Source
from vit_jax.data.transforms.preprocess import parse
from vit_jax.types import UserError


class Examples:
    """A source behind a cache of `cache_bytes` and a preprocessing spec, used by all threads at once.

    `image_shape` is what every image must have after preprocessing, (h, w, c), or None while that is not known.
    """

    def __init__(self, source: Source, preprocess: str, cache_bytes: int, image_shape: tuple[int, ...] | None = None):
        self.source, self.image_shape = Cached(source, cache_bytes), image_shape
        self._preprocess = parse(preprocess)
        # Images that were once decoded whole without damage: of these a part may be decoded alone. So what counts as
        # unreadable depends on the file, not on the crop.
        self._sound = np.zeros(len(source), bool)
        self._local = threading.local()

    def read(self, index: int, seed: int, position: int) -> np.ndarray:
        """The preprocessed image, augmented as (seed, position) say; raises UnreadableImage, or UserError for its shape."""
        rng, crop = self._generator(seed, position), self._preprocess.crop
        if crop is not None and self._sound[index]:
            part = self.source.part(index, lambda height, width: crop.box(height, width, rng))
            image = self._preprocess.after_box(part, rng)
        else:
            image = self._preprocess(self.source.image(index), rng)
            self._sound[index] = True
        if self.image_shape is not None and image.shape != self.image_shape:
            raise UserError(
                f"Found shape {image.shape} for {self.source.name(index)} after preprocessing, expected "
                f"{self.image_shape} as for the others: end the preprocessing with a resize or crop to a fixed size."
            )
        return image

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
