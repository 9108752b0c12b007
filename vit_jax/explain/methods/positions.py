"""Compare position embeddings (arXiv:2010.11929, figure 7, centre)."""

from collections.abc import Sequence

import numpy as np

from vit_jax.explain.method import Arrays, Figure, Look, Method, panels, short
from vit_jax.explain.methods.similarity import unit
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.types import UserError
from vit_jax.viz.panels import Panel, tiled

MOST = 16  # tiles along a side of the figure


class Positions(Method):
    """The cosine of each patch's position embedding with all others; the images are not used.

    Arrays: `similarity` [rows, cols, rows, cols].
    """

    title = "similarity of position embeddings"

    def check(self, network: Network) -> None:
        """See Method."""
        if "posemb/table" not in network.loaded.arrays:
            raise UserError(f"{network.kind} has no learned position embeddings (posemb/table) to compare.")
        network.need_tokens("position embeddings")

    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """See Method."""
        rows, columns = network.grid
        table = unit(network.loaded.arrays["posemb/table"][0, -rows * columns :].astype(np.float64))
        return {"similarity": (table @ table.T).reshape(rows, columns, rows, columns).astype(np.float32)}

    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """See Method."""
        return [panels(self.title, looks, None, [self._row(look) for look in looks])]

    @staticmethod
    def _row(look: Look) -> list[Panel]:
        found = look.arrays["similarity"]
        rows, columns = (
            np.unique(np.linspace(0, size - 1, min(size, MOST)).round().astype(int)) for size in found.shape[:2]
        )
        ticks = {"x": ("column", [str(i + 1) for i in columns]), "y": ("row", [str(i + 1) for i in rows])}
        tiles = tiled(found[rows][:, columns])
        return [Panel(short(look.network.name), map=tiles, limits=(-1.0, 1.0), bar="cosine", ticks=ticks, scale=2.2)]
