"""Gram anchoring: patches keep the similarities that an earlier teacher gave them (DINOv3, arXiv:2508.10104, section 4)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.types import Params, UserError


class Gram:
    """weight * the mean squared difference of the Gram matrices of patch features of unit length (equation 2).

    Each view has its own matrix. The Gram teacher has the initial weights of the run until step `start`; from then on
    it is replaced by a copy of the teacher every `every` steps. DINOv3 uses weight=2 and every=10,000.
    """

    def __init__(self, weight: float = 2.0, start: int = 0, every: int = 10_000):
        if weight < 0 or start < 0 or every < 1:
            raise UserError(
                f"task.gram has weight={weight}, start={start}, every={every}; expected a weight and a step of at least 0, and "
                "at least 1 step between two copies."
            )
        self.weight, self.start, self.every = weight, start, every

    def __call__(self, student: Float[Array, "b v n d"], teacher: Float[Array, "b v n d"]) -> Float[Array, ""]:
        """Return the loss of the patches of b images in v views."""
        ours, theirs = (_similarities(x) for x in (student, jax.lax.stop_gradient(teacher)))
        return self.weight * jnp.square(ours - theirs).mean()

    def update(self, old: Params, teacher: Params, step: Array) -> Params:
        """Return the Gram teacher after a step."""
        done = step + 1
        copies = (done >= self.start) & ((done - self.start) % self.every == 0)
        return jax.tree.map(lambda a, b: jnp.where(copies, b, a), old, teacher)


KIND = Gram


def _similarities(x: Float[Array, "b v n d"]) -> Float[Array, "b v n n"]:
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return jnp.einsum("bvnd,bvmd->bvnm", x, x)
