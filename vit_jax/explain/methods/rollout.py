"""Compute attention rollout (arXiv:2005.00928, section 3)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.explain.method import HeatMap
from vit_jax.explain.network import ByteImages, Network, Targets


def rollout(weights: list[Float[Array, "b heads n n"]]) -> Float[Array, "b n n"]:
    """Return the product over blocks of half the head-averaged attention plus half the identity (equation 1)."""
    total = identity = jnp.eye(weights[0].shape[-1])[None]
    for block in weights:
        mixed = (block.mean(axis=1) + identity) / 2
        total = (mixed / mixed.sum(axis=-1, keepdims=True)) @ total
    return total


class Rollout(HeatMap):
    """How much of each patch reaches the head's input if only attention mixes tokens: the same for every class."""

    title = "attention rollout"
    unit = "share"

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_attention("rollout")

    def maps(self, network: Network, images: ByteImages, targets: Targets | None) -> np.ndarray:
        """See HeatMap."""

        def reduce(weights: list[Array], pooling: Array | None) -> Array:
            return network.read(rollout(weights), None if pooling is None else pooling.mean(axis=1))

        return network.attention(reduce, images)
