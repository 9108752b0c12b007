"""Measure the effect of occlusion (arXiv:1311.2901, section 4.2)."""

import numpy as np

from vit_jax.explain.method import HeatMap
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.types import UserError


class Occlusion(HeatMap):
    """How much the probability of a class falls when a grey square covers a place; works for every classifier.

    size, stride: of the square, in pixels; by default a seventh of the shorter image side, and half of that. The value
    of a pixel is the mean over the squares that cover it.
    """

    title = "occlusion"
    unit = "fall of the output"
    of_class = True
    signed = True

    def __init__(self, size: int | None = None, stride: int | None = None):
        if min(x for x in (size, stride, 1) if x is not None) < 1 or (stride or 1) > (size or stride or 1):
            raise UserError(f"--method.size={size}, --method.stride={stride}: expected 1 <= stride <= size, in pixels.")
        self._size, self._stride = size, stride

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_classes("occlusion")
        height, width, _ = network.loaded.image_shape
        if (self._size or 1) > min(height, width):
            raise UserError(f"--method.size={self._size}: the images of {network.name} have {height} x {width} pixels.")

    def maps(self, network: Network, images: ByteImages, targets: Targets | None) -> np.ndarray:
        """See HeatMap; one map [b, h, w] in pixels."""
        assert targets is not None
        height, width = images.shape[1:3]
        size = self._size or max(1, min(height, width) // 7, self._stride or 1)
        stride = self._stride or max(1, size // 2)
        places = [(top, left) for top in starts(height, size, stride) for left in starts(width, size, stride)]
        grey = network.mean_color
        found = np.zeros(images.shape[:3])
        for index, (image, target) in enumerate(zip(images, targets, strict=True)):
            whole = network.probs(image[None])[0, target]
            covered = np.repeat(image[None], len(places), axis=0)
            for row, (top, left) in enumerate(places):
                covered[row, top : top + size, left : left + size] = grey
            count = np.zeros(images.shape[1:3])
            for (top, left), prob in zip(places, network.probs(covered)[:, target], strict=True):
                square = (slice(top, top + size), slice(left, left + size))
                found[index][square] += whole - prob
                count[square] += 1
            found[index] /= count
        return found.astype(np.float32)


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return the start positions of squares that cover a whole side."""
    return sorted({*range(0, length - size + 1, stride), length - size})
