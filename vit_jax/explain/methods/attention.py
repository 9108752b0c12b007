"""Show attention weights by layer and head."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from vit_jax.explain.method import Arrays, Figure, Look, Method, check_point, panels, short
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.viz.panels import Panel, tiled


class Attention(Method):
    """Where the tokens read by the head attend to, in each head of each block; or where the patch at `point` does.

    Arrays: `weights` [b, depth, heads, rows, cols], the softmax weights at the patches, and `pooling` [b, heads, rows,
    cols] of an attention pooling. If patches are averaged, the weights are the mean over all of them.
    """

    title = "attention by layer and head"

    def __init__(self, point: tuple[float, float] | None = None):
        if point is not None:
            check_point(point)
        self._point = point

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_attention("map of attention")

    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """See Method."""
        rows, columns = network.grid
        if self._point is not None:
            row, column = network.patch_at(self._point)
            query = network.prefix + row * columns + column

        def reduce(weights: list[Array], pooling: Array | None) -> dict[str, Array]:
            if self._point is not None:
                found = jnp.stack([x[:, :, query, network.prefix :] for x in weights], axis=1)
                return {"weights": found.reshape(*found.shape[:3], rows, columns)}
            flat = [x.reshape(-1, *x.shape[2:]) for x in weights]
            maps = [
                network.read(x, None).reshape(*w.shape[:2], rows, columns) for x, w in zip(flat, weights, strict=True)
            ]
            result = {"weights": jnp.stack(maps, axis=1)}
            if pooling is not None:
                result["pooling"] = pooling[:, :, 0].reshape(*pooling.shape[:2], rows, columns)
            return result

        return network.attention(reduce, images)

    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """See Method."""
        return [
            panels(f"{self.title} of {short(look.network.name)}", [look], index, [self._row(look, index)])
            for index in range(len(looks[0].names))
            for look in looks
        ]

    def _row(self, look: Look, index: int) -> list[Panel]:
        weights = look.arrays["weights"][index]
        depth, heads = weights.shape[:2]
        names = {
            "x": ("head", [str(head + 1) for head in range(heads)]),
            "y": ("layer", [str(layer + 1) for layer in range(depth)]),
        }
        scale = min(3.5, 1 + max(depth, heads) / 4)
        row = [
            Panel("", image=look.images[index], point=self._point),
            Panel(
                "", map=tiled(weights), limits=(0.0, float(weights.max())), bar="attention", ticks=names, scale=scale
            ),
        ]
        if "pooling" in look.arrays:
            pooling = look.arrays["pooling"][index][None]
            ticks = {"x": ("head of the pooling", [str(head + 1) for head in range(pooling.shape[1])])}
            row.append(Panel("", map=tiled(pooling), bar="attention", ticks=ticks, scale=scale))
        return row
