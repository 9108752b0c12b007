"""Compare all patches with one."""

import dataclasses

import numpy as np

from vit_jax.explain.method import HeatMap, Look, check_point
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.viz.panels import Panel


class Similarity(HeatMap):
    """The cosine of the encoded patches with the one at `point`, (row, column) as fractions of the height and width."""

    title = "similarity to the marked patch"
    unit = "cosine"
    signed = True
    importance = False

    def __init__(self, point: tuple[float, float] = (0.5, 0.5)):
        check_point(point)
        self._point = point

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_tokens("similarity")

    def maps(self, network: Network, images: ByteImages, targets: Targets | None) -> np.ndarray:
        """See HeatMap."""
        features = unit(network.patch_features(images))
        row, column = network.patch_at(self._point)
        return (features * features[:, row, column][:, None, None]).sum(axis=-1)

    def _row(self, look: Look, index: int) -> list[Panel]:
        return [dataclasses.replace(panel, point=self._point) for panel in super()._row(look, index)]


def unit(features: np.ndarray) -> np.ndarray:
    """Normalize features to length 1."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
