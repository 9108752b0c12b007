"""Gradient caching: the gradient of a contrastive loss over a large batch in the memory of a small one (arXiv:2101.06983)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from vit_jax.grads.gradient import Batch, Gradient, Loss, Plain, StepGradient
from vit_jax.types import BatchSize, Params, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Cached(Gradient):
    """Compute the gradient of the whole batch's loss, encoding examples in `microbatches` equal parts, one by one.

    Only the encoded examples of all parts are kept; the backward pass encodes each part again, with the dropout and
    drop path of the forward pass. For tasks that encode each example independently and then compare them, such as
    siglip.Siglip.
    """

    microbatches: BatchSize

    def __call__(self, loss, params, batch, rng, average, lr_share) -> StepGradient:
        """See Gradient; raises UserError if the batch cannot be split, or the task compares no encoded examples."""
        size = len(jax.tree.leaves(batch)[0])
        if size % self.microbatches:
            raise UserError(f"grad.microbatches={self.microbatches} does not divide the batch of {size} examples.")
        if loss.encode is None or loss.of_encoded is None:
            raise UserError(
                "grad.type='cached.Cached' is for a task that encodes its examples and then compares them, such as siglip.Siglip "
                "and clip.Clip; take accumulate.Accumulate, or model.remat, to save memory."
            )
        encode, of_encoded = loss.encode, loss.of_encoded

        def whole(params: Params, batch: Batch, rng: Rng) -> Any:
            # Example i goes to part i mod microbatches, so that each part is spread over all devices.
            parts = jax.tree.map(lambda x: rearrange(x, "(b m) ... -> m b ...", m=self.microbatches), batch)

            @jax.checkpoint
            def one(index: jax.Array, part: Batch) -> Any:
                return encode(params, part, jax.random.fold_in(rng, index))

            encoded = jax.lax.map(lambda indexed: one(*indexed), (jnp.arange(self.microbatches), parts))
            return of_encoded(params, jax.tree.map(lambda x: rearrange(x, "m b ... -> (b m) ..."), encoded), batch)

        return Plain()(Loss(whole), params, batch, rng, average, lr_share)
