"""Stochastic depth."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.types import Tokens

DropPathRule = Literal["linear", "constant"]
# An array if the blocks are the body of a loop.
Rate = float | Float[Array, ""]


def drop_path_rates(rate: float, depth: int, rule: DropPathRule) -> list[float]:
    """Return the rate of each block: linear from 0 to `rate` (arXiv:1603.09382), or just `rate` (arXiv:2204.07118)."""
    return [rate if rule == "constant" else rate * i / max(depth - 1, 1) for i in range(depth)]


class DropPath(nn.Module):
    """Drop a residual branch for whole examples with probability `rate` (stochastic depth, arXiv:1603.09382).

    Kept branches are scaled by 1 / (1 - rate), so that the expectation is unchanged, as in timm; with
    scale_by_keep=False they are not scaled, as in big_vision's Mixer.
    """

    rate: Rate = 0.0
    scale_by_keep: bool = True

    @nn.compact
    def __call__(self, branch: Tokens, *, deterministic: bool = True) -> Tokens:
        """Map tokens [b, n, d] to [b, n, d]."""
        if deterministic or (isinstance(self.rate, float | int) and self.rate == 0):
            return branch
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (branch.shape[0], 1, 1))
        if self.scale_by_keep:
            branch = branch / jnp.asarray(keep, branch.dtype)
        return jnp.where(kept, branch, jnp.zeros((), branch.dtype).reshape(1, 1, 1))
