"""Stochastic depth."""

from typing import Literal

from flax import linen as nn

from vit_jax.types import Tokens

DropPathRule = Literal["linear", "constant"]


def drop_path_rates(rate: float, depth: int, rule: DropPathRule) -> list[float]:
    """The rate of each block: from 0 linearly to `rate` in the last (arXiv:1603.09382), or `rate` in all (arXiv:2204.07118)."""
    return [rate if rule == "constant" else rate * i / max(depth - 1, 1) for i in range(depth)]


class DropPath(nn.Module):
    """Drops a residual branch for whole examples with probability `rate` (stochastic depth, arXiv:1603.09382).

    What is kept is scaled by 1 / (1 - rate), so that the expectation is unchanged.
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, branch: Tokens, *, deterministic: bool = True) -> Tokens:
        """Tokens [b, n, d] to [b, n, d]."""
        return nn.Dropout(self.rate, broadcast_dims=(1, 2))(branch, deterministic=deterministic)
