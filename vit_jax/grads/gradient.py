"""How the step takes the gradient of the loss."""

import abc
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from vit_jax.types import Params, Rng

Batch = dict[str, Array]
Metrics = dict[str, Array]
# (params, batch, rng) -> (mean loss over the batch, metrics that are means over the batch)
Loss = Callable[[Params, Batch, Rng], tuple[Float[Array, ""], Metrics]]


class Gradient(abc.ABC):
    """A way to take the gradient: (loss, params, batch, rng) -> (metrics with "loss", gradient)."""

    @abc.abstractmethod
    def __call__(self, loss: Loss, params: Params, batch: Batch, rng: Rng) -> tuple[Metrics, Params]: ...


class Plain(Gradient):
    """The gradient of the whole batch at once."""

    def __call__(self, loss: Loss, params: Params, batch: Batch, rng: Rng) -> tuple[Metrics, Params]:
        """See Gradient."""
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, rng)
        return {"loss": value, **metrics}, grads
