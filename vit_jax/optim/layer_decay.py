"""Layer-wise learning rates for fine-tuning (arXiv:2106.08254, as arXiv:2111.06377 fine-tunes)."""

import re

import optax

from vit_jax import trees
from vit_jax.types import Params, UserError

BLOCK = re.compile(r"(?:^|/)block_(\d+)/")
# What tokens are made of, before the first block.
EMBEDDING = re.compile(r"^(stem|embed|cls|dist|registers|posemb|pre_norm)(/|$)")


def layer_factors(params: Params, decay: float) -> dict[str, float]:
    """The share of the learning rate that each parameter gets, by name.

    With n blocks the head and what else follows the last block has 1, block i has decay^(n - i), counted from 0, and the
    embedding decay^(n + 1). Raises UserError where no parameter belongs to a block.
    """
    names = trees.flatten(params)
    found = {name: int(match[1]) for name in names if (match := BLOCK.search(name))}
    if not found:
        raise UserError(
            f"optim.layer_decay={decay} needs parameters of blocks, named block_0/... and so on; found {next(iter(names))!r}."
        )
    depth = max(found.values()) + 1
    return {
        name: decay ** (depth - found[name] if name in found else depth + 1 if EMBEDDING.search(name) else 0)
        for name in names
    }


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by its layer's factor; raises UserError for a decay outside (0, 1]."""
    if not 0 < decay <= 1:
        raise UserError(f"optim.layer_decay={decay}; expected a number above 0 and at most 1, such as 0.75.")

    def scale(updates: Params, params: Params | None) -> Params:
        factors = layer_factors(updates, decay)
        return trees.map_named(lambda name, update: factors[name] * update, updates)

    return optax.stateless(scale)
