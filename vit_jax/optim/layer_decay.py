"""Layer-wise learning rates for fine-tuning (arXiv:2106.08254, as arXiv:2111.06377 fine-tunes)."""

from collections.abc import Callable, Mapping

import optax

from vit_jax import trees
from vit_jax.types import Params, UserError


def scale_by_layer(decay: float, layers: Callable[[], Mapping[str, int]]) -> optax.GradientTransformation:
    """Multiply the update of each parameter by decay^(last layer - its layer).

    layers: returns the layer of every parameter by name, 0 for the embedding; parameters of the last layer, such as a head,
    have the factor 1. Raises UserError for a decay outside (0, 1], and in `init` for a network without layers.
    """
    if not 0 < decay <= 1:
        raise UserError(f"optim.layer_decay={decay}; expected a number above 0 and at most 1, such as 0.75.")

    def init(params: Params) -> optax.EmptyState:
        layers()
        return optax.EmptyState()

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None):
        of = layers()
        last = max(of.values())
        return trees.map_named(lambda name, update: decay ** (last - of[name]) * update, updates), state

    return optax.GradientTransformation(init, update)
