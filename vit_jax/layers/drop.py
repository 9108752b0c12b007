"""Stochastic depth."""

from flax import linen as nn

from vit_jax.types import Tokens


class DropPath(nn.Module):
    """Drops a residual branch for whole examples with probability `rate` (stochastic depth, arXiv:1603.09382).

    What is kept is scaled by 1 / (1 - rate), so that the expectation is unchanged.
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, branch: Tokens, *, deterministic: bool = True) -> Tokens:
        """Tokens [b, n, d] to [b, n, d]."""
        return nn.Dropout(self.rate, broadcast_dims=(1, 2))(branch, deterministic=deterministic)
