"""Show attention distance by head and depth (arXiv:2010.11929, figure 7, right, and appendix D.7)."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.explain.method import Arrays, Figure, Look, Method
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.viz.panels import draw_by_depth


def distances(rows: Float[np.ndarray, " rows"], columns: Float[np.ndarray, " cols"]) -> Float[np.ndarray, "n n"]:
    """Return the distances between the centres of patches in these rows and columns."""
    y, x = (centers.ravel() for centers in np.meshgrid(rows, columns, indexing="ij"))
    return np.hypot(y[:, None] - y[None], x[:, None] - x[None])


def attention_distance(
    weights: Float[Array, "b heads n n"], between: Float[np.ndarray, "n n"]
) -> Float[Array, "b heads"]:
    """Return the attention-weighted distance to the keys, averaged over the queries; all tokens are patches."""
    shares = weights / weights.sum(axis=-1, keepdims=True)
    return (shares * between[None, None]).sum(axis=-1).mean(axis=-1)


class Distance(Method):
    """How far each head of each block looks, in pixels; attention to tokens other than patches is ignored.

    Arrays: `distance` [b, depth, heads].
    """

    title = "attention distance by depth"

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_attention("attention distance")
        network.need_tokens("attention distance")

    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """See Method."""
        between = distances(*network.centers).astype(np.float32)

        def reduce(weights: list[Array], pooling: Array | None) -> dict[str, Array]:
            patches = [x[:, :, network.prefix :, network.prefix :] for x in weights]
            return {"distance": jnp.stack([attention_distance(x, between) for x in patches], axis=1)}

        return network.attention(reduce, images)

    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """See Method."""
        groups = {f"{look.network.name}{' ' * i}": look.arrays["distance"].mean(axis=0) for i, look in enumerate(looks)}
        title = f"{self.title}, mean over {len(looks[0].names)} image{'s' if len(looks[0].names) > 1 else ''}"
        labels = ("layer", "mean distance, pixels")
        return [Figure(title, functools.partial(draw_by_depth, groups, labels, title))]
