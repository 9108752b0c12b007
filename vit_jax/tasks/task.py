"""What a network is trained to do."""

import abc

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.types import ByteImages, Images, Params, Rng, UserError

Batch = dict[str, Array]
Scale = float | tuple[float, ...] | list[float]


def normalize(images: ByteImages, mean: Scale, std: Scale) -> Images:
    """(images / 255 - mean) / std in float32, for one mean and std or one per channel."""
    channels = images.shape[-1]
    for name, scale in (("mean", mean), ("std", std)):
        if isinstance(scale, tuple | list) and len(scale) != channels:
            raise UserError(f"task.{name} is {scale}; expected one number, or {channels}, one per channel.")
    center, width = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), images.shape[-1]) for x in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - center.reshape(1, 1, 1, -1)) / width.reshape(1, 1, 1, -1)


class Task(abc.ABC):
    """A model with its objective: initial parameters, the loss of a batch, and predictions.

    per_example: the loss is a mean over examples, so shards of a batch can be averaged.
    """

    model: nn.Module
    per_example: bool = True

    @abc.abstractmethod
    def init(self, rng: Rng, image_shape: tuple[int, int, int]) -> Params:
        """Initial parameters for images of (h, w, c)."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The training loss of a batch, and metrics that are means over it."""

    @abc.abstractmethod
    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Per example `logits`, `probs` and `features`, and with a "label" in the batch the `loss`; without dropout."""
