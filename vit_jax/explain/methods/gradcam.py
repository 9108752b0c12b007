"""Apply Grad-CAM to tokens (arXiv:1610.02391)."""

import jax
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from vit_jax.explain.method import HeatMap
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.types import UserError


def gradcam(tokens: Float[Array, "b n d"], gradients: Float[Array, "b n d"]) -> Float[Array, "b n"]:
    """Return the positive part of the tokens' sum over channels, weighted by the mean gradient (equations 1 and 2)."""
    return jax.nn.relu((tokens * gradients.mean(axis=1, keepdims=True)).sum(axis=-1))


class GradCam(HeatMap):
    """Which patches raise the output of a class, according to the channels of the tokens after one block.

    layer: the block, from 1, or from the end if negative. The default is the last block, or the last but one if a class
    token is read, because the gradient after the last block is zero at the patches.
    """

    title = "Grad-CAM"
    unit = "Grad-CAM"
    of_class = True

    def __init__(self, layer: int | None = None):
        self._layer = layer

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_classes("Grad-CAM")
        if not network.blocks:
            raise UserError(
                f"{network.kind} has no blocks that sow their output as `out`, so there are no tokens for Grad-CAM; use occlusion."
            )
        network.need_tokens("Grad-CAM")
        self._block(network)

    def _block(self, network: Network) -> str:
        depth = len(network.blocks)
        default = -2 if network.reads_prefix and depth > 1 else -1
        layer = default if self._layer is None else self._layer
        if not 1 <= abs(layer) <= depth:
            raise UserError(
                f"--method.layer={layer}: {network.kind} has {depth} blocks; expected 1 to {depth}, or -1 to {-depth}."
            )
        return network.blocks[layer - 1 if layer > 0 else layer]

    def maps(self, network: Network, images: ByteImages, targets: Targets | None) -> np.ndarray:
        """See HeatMap."""

        def reduce(tokens: Array, gradients: Array) -> Array:
            if tokens.ndim == 4:  # the map of a stage
                grid, patches = tokens.shape[1:3], (rearrange(x, "b h w d -> b (h w) d") for x in (tokens, gradients))
            else:
                grid, patches = network.grid, (x[:, network.prefix :] for x in (tokens, gradients))
            return gradcam(*patches).reshape(-1, *grid)

        assert targets is not None
        return network.token_gradients(reduce, self._block(network), images, targets)
