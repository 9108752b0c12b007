"""Gradient accumulation: the gradient of a large batch in the memory of a small one."""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange

from vit_jax.grads.gradient import Batch, Gradient, Plain, StepGradient
from vit_jax.types import BatchSize, UserError


@dataclasses.dataclass(frozen=True)
class Accumulate(Gradient):
    """Average over `microbatches` equal parts, one by one; without dropout it equals the whole batch's gradient."""

    microbatches: BatchSize
    splits_batch = True

    def __call__(self, loss, params, batch, rng, average, lr_share) -> StepGradient:
        """See Gradient; raises UserError if the batch cannot be split evenly."""
        size = len(jax.tree.leaves(batch)[0])
        if self.microbatches < 1 or size % self.microbatches:
            raise UserError(f"grad.microbatches={self.microbatches} does not divide the batch of {size} examples.")
        # Example i goes to part i mod microbatches, so that each part is spread over all devices.
        parts = jax.tree.map(lambda x: rearrange(x, "(b m) ... -> m b ...", m=self.microbatches), batch)

        def one(index: jax.Array, part: Batch) -> StepGradient:
            return Plain()(loss, params, part, jax.random.fold_in(rng, index), lambda tree: tree, lr_share)

        def add(total, indexed):
            return jax.tree.map(lambda a, b: a + b, total, one(*indexed)), None

        indexed = (jnp.arange(self.microbatches), parts)
        shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], indexed))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, indexed)
        return average(jax.tree.map(lambda x: x / self.microbatches, total))
