"""Made-up images that can be learnt: for smoke tests and for measuring speed without a data set."""

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.source import Source
from vit_jax.types import UserError


class Fake(Source):
    """Each class is a 4 x 4 pattern of colours, each image its class's pattern under noise.

    A function of (seed, index) alone; `image_size` is int or (h, w); labels go round through the classes.
    """

    def __init__(
        self,
        num_examples: int = 1024,
        image_size: int | tuple[int, int] = 224,
        channels: int = 3,
        num_classes: int = 1000,
        seed: int = 0,
    ):
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(num_examples, height, width, channels, num_classes) < 1:
            raise UserError(
                f"Found num_examples={num_examples}, image_size={image_size}, channels={channels}, "
                f"num_classes={num_classes} for fake data, expected all at least 1: raise those below."
            )
        if not 0 <= seed < 2**32:
            raise UserError(f"Found seed={seed} for fake data, expected 0 <= seed < 2**32: choose another seed.")
        self.class_names = tuple(f"class {i}" for i in range(num_classes))
        self._length, self._shape, self._seed = num_examples, (height, width, channels), seed
        self._rows, self._columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width

    def __len__(self) -> int:
        return self._length

    def label(self, index: int) -> int:
        return index % len(self.class_names)

    def image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        def rng(kind: int, i: int) -> np.random.Generator:
            return np.random.Generator(np.random.Philox(key=[2 * self._seed + kind, i]))

        pattern = rng(0, self.label(index)).integers(0, 128, (4, 4, self._shape[2]), np.uint8)
        noise = rng(1, index).integers(0, 128, self._shape, np.uint8)
        return pattern[self._rows][:, self._columns] + noise

    def name(self, index: int) -> str:
        return f"fake/{index}"
