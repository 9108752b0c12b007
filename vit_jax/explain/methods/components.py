"""Show principal components of patch features as colours, as in figure 1 of DINOv2 (arXiv:2304.07193)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vit_jax.explain.method import Arrays, Figure, Look, Method, panels, short
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.types import UserError
from vit_jax.viz.panels import Panel

COLUMNS, MOST = 6, 24  # images in the figure


def components(features: Float[np.ndarray, "n d"], count: int = 3) -> Float[np.ndarray, "n count"]:
    """Return the first principal components of centred float64 features; the largest loading of each is positive."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    first = vectors[:, ::-1][:, :count]
    first = first * np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
    return np.pad(centred @ first, ((0, 0), (0, count - first.shape[1])))


def as_colors(values: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Scale each component to [0, 1], between its 1st and 99th percentile."""
    low, high = np.percentile(values, (1, 99), axis=0)
    return ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)


class Components(Method):
    """The first three principal components of the encoded patches as red, green and blue.

    joint: compute them over the patches of all images, so that a colour means the same in each; otherwise per image.
    foreground: keep only the patches on the side of the first component that touches the image borders less, and
    recompute the components on them; other patches are black. Arrays: `components` [b, rows, cols, 3], `colors` [b,
    rows, cols, 3] in [0, 1].
    """

    title = "principal components of patch features"

    def __init__(self, joint: bool = True, foreground: bool = False):
        self._joint, self._foreground = joint, foreground

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_tokens("principal components")

    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """See Method."""
        features = network.patch_features(images)
        groups = [features] if self._joint else [one[None] for one in features]
        found = [self._of_group(group) for group in groups]
        return {key: np.concatenate([one[key] for one in found]).astype(np.float32) for key in found[0]}

    def _of_group(self, features: Float[np.ndarray, "b rows cols d"]) -> Arrays:
        shape, flat = (*features.shape[:3], 3), features.reshape(-1, features.shape[-1])
        kept = np.ones(len(flat), bool)
        if self._foreground:
            kept = inside(components(flat, 1).reshape(features.shape[:3])).ravel()
        if kept.sum() < 2:
            raise UserError("--method.foreground: no patches are left; leave it out.")
        values, colors = np.zeros((2, len(flat), 3))
        values[kept] = components(flat[kept])
        colors[kept] = as_colors(values[kept])
        return {"components": values.reshape(shape), "colors": colors.reshape(shape)}

    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """Return one figure of all images with their components below; see Method."""
        count, rows = min(len(looks[0].names), MOST), []
        for first in range(0, count, COLUMNS):
            numbers = range(first, min(first + COLUMNS, count))
            for look in looks:
                rows.append([Panel(short(look.names[i], 30), image=look.images[i]) for i in numbers])
                pixels = (255 * look.arrays["colors"]).round().astype(np.uint8)
                rows.append([Panel(short(look.network.name, 30), image=pixels[i]) for i in numbers])
        return [panels(f"{self.title}, {'jointly' if self._joint else 'image by image'}", looks, None, rows)]


def inside(values: Float[np.ndarray, "b rows cols"]) -> np.ndarray:
    """Return where values have the sign that is rarer at the image borders than overall."""
    border = np.ones(values.shape[1:], bool)
    border[1:-1, 1:-1] = False
    positive = values > 0
    return ~positive if positive[:, border].mean() > positive.mean() else positive
