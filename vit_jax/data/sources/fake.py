"""Generate learnable synthetic images, for smoke tests and for benchmarks without a data set."""

from typing import Annotated

import numpy as np

from vit_jax.data.decode import MAX_PIXELS
from vit_jax.data.source import Example, Image, Label, Source
from vit_jax.types import Between, Count, Seed, Units, UserError


class Fake(Source):
    """Each class is a 4 x 4 pattern of colours; each image is the pattern of its class plus noise.

    A function of (seed, index) only; `image_size` is int or (h, w); labels cycle through the classes.
    """

    def __init__(
        self,
        num_examples: Annotated[int, Between(1, 2**28)] = 1024,
        image_size: Units | tuple[Units, Units] = 224,
        channels: Count = 3,
        num_classes: Units = 1000,
        seed: Seed = 0,
    ):
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(num_examples, height, width, channels, num_classes) < 1:
            raise UserError(
                f"Found num_examples={num_examples}, image_size={image_size}, channels={channels}, "
                f"num_classes={num_classes} for fake data, expected all at least 1: raise those below."
            )
        if height * width * channels > MAX_PIXELS:
            raise UserError(
                f"Found image_size={image_size} and channels={channels} for fake data, expected at most {MAX_PIXELS:,} numbers in "
                "an image: lower one of them."
            )
        if not 0 <= seed < 2**32:
            raise UserError(f"Found seed={seed} for fake data, expected 0 <= seed < 2**32: choose another seed.")
        self.fields = {"image": Image(), "label": Label(tuple(f"class {i}" for i in range(num_classes)))}
        self._length, self._shape, self._seed = num_examples, (height, width, channels), seed
        self._num_classes = num_classes
        self._rows, self._columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        def rng(kind: int, i: int) -> np.random.Generator:
            return np.random.Generator(np.random.Philox(key=[2 * self._seed + kind, i]))

        label = index % self._num_classes
        pattern = rng(0, label).integers(0, 128, (4, 4, self._shape[2]), np.uint8)
        noise = rng(1, index).integers(0, 128, self._shape, np.uint8)
        return {"image": pattern[self._rows][:, self._columns] + noise, "label": label}

    def name(self, index: int) -> str:
        return f"fake/{index}"
