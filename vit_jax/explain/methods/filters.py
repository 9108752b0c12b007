"""Show principal filters of the patch embedding (arXiv:2010.11929, figure 7, left)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vit_jax.explain.method import Arrays, Figure, Look, Method, panels, short
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.types import UserError
from vit_jax.viz.panels import Panel, tiled

COLUMNS = 7


def principal_filters(kernel: Float[np.ndarray, "h w c d"], count: int) -> Float[np.ndarray, "count h w c"]:
    """Return the first principal components of the d filters, of length 1; the largest value of each is positive."""
    filters = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)
    _, _, vectors = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)
    vectors = vectors[:count]
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)])[:, None]
    return vectors.reshape(-1, *kernel.shape[:3])


class Filters(Method):
    """The first `count` principal components of the filters of the patch embedding; the images are not used.

    Arrays: `filters` [count, h, w, c].
    """

    title = "principal filters of the patch embedding"

    def __init__(self, count: int = 28):
        if count < 1:
            raise UserError(f"--method.count={count}: expected at least 1.")
        self._count = count

    def check(self, network: Network) -> None:
        """See Method."""
        kernel = network.loaded.arrays.get("embed/kernel")
        if kernel is None or kernel.ndim != 4 or min(kernel.shape[:2]) < 2:
            found = "none" if kernel is None else f"{kernel.shape}"
            raise UserError(
                f"{network.kind} has no patch embedding of pixels (embed/kernel [h, w, c, d]; found {found}), so it has no filters "
                "to show."
            )

    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """See Method."""
        return {"filters": principal_filters(network.loaded.arrays["embed/kernel"], self._count).astype(np.float32)}

    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """See Method."""
        rows = [
            [Panel(short(look.network.name), image=self._image(look.arrays["filters"]), scale=2.0)] for look in looks
        ]
        return [panels(self.title, looks, None, rows)]

    @staticmethod
    def _image(filters: Float[np.ndarray, "count h w c"]) -> np.ndarray:
        """Return filters as tiles, with zero as grey."""
        high = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
        pixels = np.round(127.5 + 127.5 * filters / np.maximum(high, 1e-12)).astype(np.uint8)
        if pixels.shape[3] not in (1, 3):
            pixels = pixels[..., :1]
        empty = np.full((-len(pixels) % COLUMNS, *pixels.shape[1:]), 255, np.uint8)
        return tiled(np.concatenate([pixels, empty]).reshape(-1, COLUMNS, *pixels.shape[1:]))
