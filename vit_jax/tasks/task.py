"""What a network is trained to do."""

import abc
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.types import Images, Params, Pixels, Rng, UserError

Batch = dict[str, Array]
Scale = float | tuple[float, ...] | list[float]


def normalize(images: Pixels, mean: Scale, std: Scale) -> Images:
    """(images / 255 - mean) / std in float32, for one mean and std or one per channel."""
    channels = images.shape[-1]
    for name, scale in (("mean", mean), ("std", std)):
        if isinstance(scale, tuple | list) and len(scale) != channels:
            raise UserError(f"task.{name} is {scale}; expected one number, or {channels}, one per channel.")
    center, width = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), images.shape[-1]) for x in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - center.reshape(1, 1, 1, -1)) / width.reshape(1, 1, 1, -1)


def check_scale(mean: Scale, std: Scale, what: str = "") -> None:
    """Raises UserError where a standard deviation, that of `what`, is not above 0."""
    if min(std if isinstance(std, tuple | list) else (std,), default=0) <= 0:
        raise UserError(f"task.{what}std is {std}, beside {what}mean={mean}; expected numbers above 0.")


class Task(abc.ABC):
    """A model with its objective: initial parameters, the loss of a batch, and predictions.

    per_example: the loss is a mean over examples, so shards of a batch can be averaged. constants: arrays that training reads
    and never changes or saves, such as a teacher's weights.
    """

    model: nn.Module
    per_example: bool = True

    @property
    def constants(self) -> Params:
        """See above."""
        return {}

    def init(self, rng: Rng, image_shape: tuple[int, int, int]) -> Params:
        """Initial parameters for images of (h, w, c)."""
        return self.model.init(rng, jnp.zeros((1, *image_shape)))["params"]

    @abc.abstractmethod
    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """What `loss` is given for a whole batch of uint8 images and labels: mixed images, soft targets and the like."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The training loss of a prepared batch or a part of it, and metrics that are means over it."""

    @abc.abstractmethod
    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Per example `logits`, `probs` and `features`, and with a "label" in the batch the `loss`; without dropout."""


def apply_with(
    model: nn.Module, params: Params, images: Images, rng: Rng | None = None
) -> tuple[Array, Mapping[str, Array]]:
    """The model's output in float32 and what it sows, such as `features`; with `rng` as in training."""
    rngs = None if rng is None else {"dropout": rng}
    out, sown = model.apply({"params": params}, images, train=rng is not None, rngs=rngs, mutable=["intermediates"])
    return jax.tree.map(lambda x: x.astype(jnp.float32), (out, sown.get("intermediates", {})))
