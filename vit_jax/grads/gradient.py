"""The interface for computing the gradient of the loss."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from vit_jax.types import Params, Rng

Batch = dict[str, Any]  # arrays, or trees of them, by name
# The mean loss over a batch, and (metrics, stats) that are means over the batch.
Value = tuple[Float[Array, ""], tuple[Mapping[str, Array], Mapping[str, Any]]]
# The mean of a tree over the devices that each hold a part of the batch; the identity if one program sees the whole
# batch.
Average = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss as a function of (params, batch, rng).

    For contrastive tasks, also contains the encoder and the loss on encoded examples: encode(params, batch, rng), which
    returns a tree of arrays [b, ...], and of_encoded(params, encoded, batch).
    """

    whole: Callable[[Params, Batch, Rng], Value]
    encode: Callable[[Params, Batch, Rng], Any] | None = None
    of_encoded: Callable[[Params, Any, Batch], Value] | None = None

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Value:
        """Return the loss of a batch."""
        return self.whole(params, batch, rng)


class StepGradient(NamedTuple):
    """The gradient of a batch, metrics including the loss, and the stats for the task's update."""

    metrics: Mapping[str, Array]
    stats: Mapping[str, Any]
    grads: Params


class Gradient(abc.ABC):
    """A way to compute the gradient; metrics, stats and gradient are averaged by `average`.

    lr_share: the learning rate of the step as a share of its peak. splits_batch: the loss is computed for parts of the
    batch, so that the task must be decomposable.
    """

    splits_batch: bool = False

    @abc.abstractmethod
    def __call__(
        self, loss: Loss, params: Params, batch: Batch, rng: Rng, average: Average, lr_share: Float[Array, ""]
    ) -> StepGradient: ...


class Plain(Gradient):
    """The gradient of the whole batch at once."""

    def __call__(self, loss, params, batch, rng, average, lr_share) -> StepGradient:
        """See Gradient."""
        (value, (metrics, stats)), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, rng)
        metrics, grads, stats = average(({"loss": value, **metrics}, grads, stats))
        return StepGradient(metrics, stats, grads)
