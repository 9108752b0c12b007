"""Compute gradient-weighted relevance of attention (arXiv:2103.15679)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.explain.method import HeatMap
from vit_jax.explain.network import ByteImages, Network, Targets


def weighted(weights: Float[Array, "b heads q n"], gradients: Float[Array, "b heads q n"]) -> Float[Array, "b q n"]:
    """Return the mean over the heads of the positive part of gradient times weight (equation 5)."""
    return jax.nn.relu(weights * gradients).mean(axis=1)


def relevance(
    weights: list[Float[Array, "b heads n n"]], gradients: list[Float[Array, "b heads n n"]]
) -> Float[Array, "b n n"]:
    """Return the relevance R - I between tokens: R starts as I and becomes R + A R in each block (equation 6).

    The part added to the identity is often so small that float32 would lose its last digits if the identity were
    included.
    """
    total = jnp.zeros_like(weights[0][:, 0])
    for block, gradient in zip(weights, gradients, strict=True):
        added = weighted(block, gradient)
        total = total + added + added @ total
    return total


def normalized(relevances: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
    """Return R - I with rows of sum 1, plus I (equations 8 and 9), for use by a later attention."""
    sums = relevances.sum(axis=-1, keepdims=True)
    return relevances / jnp.where(sums > 0, sums, 1.0) + jnp.eye(relevances.shape[-1])[None]


class Relevance(HeatMap):
    """Which patches raise the output of a class through the attention: Grad-CAM for transformers."""

    title = "relevance"
    unit = "relevance"
    of_class = True

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_classes("relevance")
        network.need_attention("relevance")

    def maps(self, network: Network, images: ByteImages, targets: Targets | None) -> np.ndarray:
        """See HeatMap."""

        def reduce(
            weights: list[Array], pooling: Array | None, gradients: list[Array], to_pooling: Array | None
        ) -> Array:
            total = relevance(weights, gradients)
            if pooling is None or to_pooling is None:
                return network.read(total, None)
            return network.read(normalized(total), weighted(pooling, to_pooling))

        assert targets is not None
        return network.attention_gradients(reduce, images, targets)
