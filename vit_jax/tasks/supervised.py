"""Base class for supervised objectives: a network with one output for each class or number, and normalised images."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array

from vit_jax.layers.patches import Patches
from vit_jax.sharding import batch_sharded
from vit_jax.tasks.task import (
    Scale,
    Spec,
    TaskState,
    Weights,
    WithCollections,
    apply,
    check_scale,
    collections_of,
    init_variables,
    normalize,
    sown_outputs,
)
from vit_jax.types import Params, Pixels, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Supervised(WithCollections):
    """A network trained on labels; images are normalised by `mean` and `std` of [0, 1] values.

    Mutable collections of the network, such as batch statistics, are the task's state.
    """

    model: nn.Module
    class_names: tuple[str, ...] = ()
    spec: Spec | None = None
    mean: Scale = 0.5
    std: Scale = 0.5
    any_shape = True

    def __post_init__(self):
        check_scale(self.mean, self.std)

    @property
    def num_outputs(self) -> int:
        """The number of classes or numbers."""
        return len(self.class_names) or self.model.num_classes  # type: ignore[attr-defined]

    @property
    def collections(self) -> tuple[str, ...]:
        """The mutable collections of the network."""
        return () if self.spec is None else collections_of(self.model, self.spec["image"].shape)

    def first_variables(self) -> Weights:
        """See WithCollections."""
        assert self.spec is not None
        return init_variables(self.model, jax.random.key(0), self.spec["image"].shape)

    def train_outputs(
        self, params: Params, state: TaskState, images: Pixels | Patches, rng: Rng
    ) -> tuple[Array, Any, Any]:
        """Return the outputs [b, classes] in training mode, the network's sown values, and its updated collections."""
        out, sown, updated = apply(self.model, {"params": params, **state}, normalize(images, self.mean, self.std), rng)
        return batch_sharded(self._checked(out)), sown, updated

    def outputs(self, weights: Weights, images: Pixels | Patches) -> tuple[Array, dict[str, Array]]:
        """Return the outputs [b, classes] at inference and, if the network sows them, `features` and patch `tokens`."""
        out, sown, _ = apply(self.model, weights, normalize(images, self.mean, self.std))
        return batch_sharded(self._checked(out)), sown_outputs(self.model, sown)

    def _checked(self, out: Any) -> Array:
        if isinstance(out, Array) and out.ndim == 2 and (not self.class_names or out.shape[1] == self.num_outputs):
            return out
        found = f"an array of shape {out.shape}" if hasattr(out, "shape") else f"a {type(out).__name__}"
        raise UserError(
            f"The model {type(self.model).__name__} returns {found}; expected logits [b, {self.num_outputs}], one for each "
            f"of the {self.num_outputs} classes: give it a field num_classes, which is set to that, or return that many."
        )
