"""Softmax over the images and over the texts of a batch (CLIP, arXiv:2103.00020)."""

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
    """The mean cross-entropy of finding an image's text among those of the batch, and a text's image (figure 3).

    The products are scaled by exp(log_scale), at most `most_scale` (section 2.5), which begins as `scale`. A text equal to an
    image's own takes no part in that image's softmax.
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
    """Return the smaller of both; above the bound, only a gradient passes that lowers x, so that it does not stay there."""
    return jnp.minimum(x, bound)


def _at_most_forward(x: Array, bound: float) -> tuple[Array, Array]:
    return jnp.minimum(x, bound), x


def _at_most_backward(bound: float, x: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(x > bound, jnp.maximum(gradient, 0.0), gradient),)


at_most.defvjp(_at_most_forward, _at_most_backward)


def softmax_loss(
    image: Float[Array, "b d"], text: Float[Array, "b d"], scale: Float[Array, ""], left_out: Array | None = None
) -> Float[Array, ""]:
    """Return the mean of both cross-entropies; pairs of `left_out` [b, b] count as no negatives."""
    logits = scale * image @ text.T
    if left_out is not None:
        logits = jnp.where(left_out, -jnp.inf, logits)
    right = jnp.diagonal(logits)
    both = [(jax.nn.logsumexp(logits, axis=axis) - right).mean() for axis in (0, 1)]
    return (both[0] + both[1]) / 2
