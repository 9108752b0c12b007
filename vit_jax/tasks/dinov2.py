"""DINOv2's objective: iBOT with balanced assignments and the KoLeo loss (arXiv:2304.07193, section 4)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vit_jax.tasks.dino import EncodedViews
from vit_jax.tasks.ibot import Ibot, PatchScores
from vit_jax.tasks.task import Batch, TaskState
from vit_jax.types import Units, UserError


def sinkhorn_knopp(
    scores: Float[Array, "n k"], temperature: Array | float, counts: Bool[Array, " n"], iterations: int = 3
) -> Float[Array, "n k"]:
    """Assign the rows marked in `counts` to k prototypes, in equal shares (arXiv:2006.09882, equation 3)."""
    weights = jnp.exp((scores - jax.lax.stop_gradient(scores.max())) / temperature) * counts[:, None]
    weights = weights / jnp.maximum(weights.sum(), 1e-30)
    for _ in range(iterations):
        weights = weights / jnp.maximum(weights.sum(axis=0, keepdims=True), 1e-30) / scores.shape[1]
        weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    return weights


def koleo(features: Float[Array, "b d"]) -> Float[Array, ""]:
    """Return the Kozachenko-Leonenko loss: -log of the distance to the nearest other feature of unit length (1806.03198)."""
    x = features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-8)
    cosines = jax.lax.stop_gradient(x @ x.T) - 3.0 * jnp.eye(len(x))
    nearest = x[cosines.argmax(axis=1)]
    distances = jnp.sqrt(jnp.square(x - nearest + 1e-8).sum(axis=1))
    return -jnp.log(distances + 1e-8).mean()


@dataclasses.dataclass(frozen=True)
class DinoV2(Ibot):
    """The loss of Ibot with separate heads, plus koleo_weight times the KoLeo loss of the large views' class features.

    assignment: "sinkhorn", three iterations of Sinkhorn-Knopp over the whole batch, or "centering" as in Dino. The losses
    compare the examples of a batch, so gradients cannot be accumulated.
    """

    outputs: Units = 65536
    patch_outputs: Units | None = 65536
    assignment: Literal["sinkhorn", "centering"] = "sinkhorn"
    koleo_weight: float = 0.1
    decomposable = False

    def __post_init__(self):
        super().__post_init__()
        if self.koleo_weight < 0:
            raise UserError(f"task.koleo_weight is {self.koleo_weight}; expected a weight of at least 0.")

    def targets(self, scores: Array, center: Float[Array, "1 k"], temperature: Any) -> Float[Array, "b v k"]:
        """See Dino."""
        if self.assignment == "centering":
            return super().targets(scores, center, temperature)
        flat = rearrange(scores, "b v k -> (b v) k")
        balanced = sinkhorn_knopp(flat, temperature, jnp.ones(len(flat), bool))
        return jax.lax.stop_gradient(balanced.reshape(scores.shape))

    def patch_targets(self, patches: PatchScores, state: TaskState) -> Float[Array, "b v m k"]:
        """See Ibot."""
        if self.assignment == "centering":
            return super().patch_targets(patches, state)
        flat = rearrange(patches.teacher, "b v m k -> (b v m) k")
        balanced = sinkhorn_knopp(flat, state["temperature"], patches.counts.reshape(-1))
        return jax.lax.stop_gradient(balanced.reshape(patches.teacher.shape))

    def centers(self, scores: Float[Array, "b v k"], state: TaskState, whole: EncodedViews) -> dict[str, Array]:
        """See Ibot; without centring there is nothing to average."""
        return super().centers(scores, state, whole) if self.assignment == "centering" else {}

    def regularizers(self, state: TaskState, seen: EncodedViews, batch: Batch) -> dict[str, Array]:
        """See Dino; adds the KoLeo loss of each large view."""
        terms = super().regularizers(state, seen, batch)
        if not self.koleo_weight:
            return terms
        views = [seen.features[:, view] for view in range(seen.features.shape[1])]
        return terms | {"koleo": self.koleo_weight * sum((koleo(view) for view in views), jnp.zeros(()))}
