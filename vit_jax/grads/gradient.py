"""How the step takes the gradient of the loss."""

import abc
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from vit_jax.types import Params, Rng

Batch = dict[str, Array]
Metrics = dict[str, Array]
# (params, batch, rng) -> (mean loss over the batch, metrics that are means over the batch)
Loss = Callable[[Params, Batch, Rng], tuple[Float[Array, ""], Metrics]]
# The mean of a tree over the devices that each hold a part of the batch; nothing where one program sees the whole of it.
Average = Callable[[Any], Any]


class Gradient(abc.ABC):
    """A way to take the gradient: (loss, params, batch, rng) -> (metrics with "loss", gradient), both averaged by `average`.

    lr_share: the learning rate of the step as a share of its peak.
    """

    @abc.abstractmethod
    def __call__(
        self, loss: Loss, params: Params, batch: Batch, rng: Rng, average: Average, lr_share: Float[Array, ""]
    ) -> tuple[Metrics, Params]: ...


class Plain(Gradient):
    """The gradient of the whole batch at once."""

    def __call__(self, loss, params, batch, rng, average, lr_share) -> tuple[Metrics, Params]:
        """See Gradient."""
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, rng)
        return average(({"loss": value, **metrics}, grads))
