"""Represent image files as fields of examples."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.decode import decode, decode_part
from vit_jax.data.source import Draw, Encoded


class ImageFile(Encoded):
    """The bytes of an image file, read on demand and decoded to `channels` channels.

    read: returns the bytes, or raises UnreadableImage.
    """

    def __init__(self, read: Callable[[], bytes], channels: int = 3):
        self._read, self._channels = read, channels

    def decode(self) -> UInt8[np.ndarray, "h w c"]:
        """See Encoded."""
        return decode(self._read(), self._channels)

    def decode_part(self, draw: Draw) -> UInt8[np.ndarray, "h w c"]:
        """See Encoded."""
        return decode_part(self._read(), self._channels, draw)
