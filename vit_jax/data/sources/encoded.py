"""Sources whose images are files: what they share is how the bytes become pixels."""

import abc

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.decode import decode, decode_part
from vit_jax.data.source import Draw, Source


class Encoded(Source):
    """A source of image files, decoded to `channels` channels."""

    channels: int

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """The bytes of the file; raises UnreadableImage."""

    def image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decode(self.encoded(index), self.channels)

    def part(self, index: int, draw: Draw) -> UInt8[np.ndarray, "h w c"]:
        return decode_part(self.encoded(index), self.channels, draw)
