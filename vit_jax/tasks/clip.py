"""Contrastive loss with softmaxes over the images and the texts of a batch (CLIP, arXiv:2103.00020)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.tasks.task import Aux, Batch
from vit_jax.tasks.towers import Towers, check_batch, retrieved, same_text
from vit_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Clip(Towers):
    """Find each image's text among the texts of the batch, and each text's image among the images (figure 3).

    The loss is the mean of both cross-entropies. Products are scaled by exp(log_scale), which starts at `scale` and is
    at most `most_scale` (section 2.5). Other texts that equal an image's own text are left out of its softmax.
    """

    scale: float = 1 / 0.07
    most_scale: float = 100.0

    @property
    def first_log_scale(self) -> float:
        """See Towers."""
        return math.log(self.scale)

    def loss_of(self, params: Params, encoded: dict[str, Array], batch: Batch) -> tuple[Float[Array, ""], Aux]:
        """See Towers."""
        check_batch("Clip", len(batch["text"]))
        scale = jnp.exp(at_most(params["log_scale"], math.log(self.most_scale)))
        equal = same_text(batch["text"], batch["text"]) & ~jnp.eye(len(batch["text"]), dtype=bool)
        loss = softmax_loss(encoded["image"], encoded["text"], scale, equal)
        return loss, Aux({"scale": scale, "retrieved": retrieved(encoded["image"] @ encoded["text"].T)})


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_most(x: Float[Array, ""], bound: float) -> Float[Array, ""]:
    """Return min(x, bound); above the bound, pass only gradients that lower x, so that it does not stay there."""
    return jnp.minimum(x, bound)


def _at_most_forward(x: Array, bound: float) -> tuple[Array, Array]:
    return jnp.minimum(x, bound), x


def _at_most_backward(bound: float, x: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(x > bound, jnp.maximum(gradient, 0.0), gradient),)


at_most.defvjp(_at_most_forward, _at_most_backward)


def softmax_loss(
    image: Float[Array, "b d"], text: Float[Array, "b d"], scale: Float[Array, ""], left_out: Array | None = None
) -> Float[Array, ""]:
    """Return the mean of both cross-entropies; pairs in `left_out` [b, b] do not count as negatives."""
    logits = scale * image @ text.T
    if left_out is not None:
        logits = jnp.where(left_out, -jnp.inf, logits)
    right = jnp.diagonal(logits)
    both = [(jax.nn.logsumexp(logits, axis=axis) - right).mean() for axis in (0, 1)]
    return (both[0] + both[1]) / 2
