"""Self-distillation of views and of masked patches (iBOT, arXiv:2111.07832)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vit_jax.tasks import task
from vit_jax.tasks.dino import Dino, EncodedViews, Head, entropy
from vit_jax.tasks.masks import block_masks, check_ratio
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState
from vit_jax.types import Params, Rng, Units, UserError


class PatchScores(NamedTuple):
    """Scores [b, v, m, k] of teacher and student for up to m masked patches per view, and which of these are masked."""

    teacher: Array
    student: Array
    counts: Bool[Array, "b v m"]


@dataclasses.dataclass(frozen=True)
class Ibot(Dino):
    """The loss of Dino, plus patch_weight times the cross-entropy of masked patches (equations 2 and 3).

    With probability `mask_prob`, the student sees a large view with blocks of its patches replaced by the mask token, a
    share drawn from `mask_ratio`; the teacher sees the whole view. Both losses share a head, unless `patch_outputs`
    gives patches their own. The model has a class token and mask_token=True.
    """

    outputs: Units = 8192
    patch_outputs: Units | None = None
    patch_weight: float = 1.0
    mask_prob: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    smallest_block: Units = 4

    def __post_init__(self):
        super().__post_init__()
        self.need_mask_token()
        self.need_stages()
        for ratio in self.mask_ratio:
            check_ratio("mask_ratio", ratio)
        if not 0 < self.mask_prob <= 1 or self.mask_ratio[0] > self.mask_ratio[1]:
            raise UserError(
                f"task.mask_prob={self.mask_prob} and task.mask_ratio={self.mask_ratio}; expected a probability above 0, and the "
                "smaller share first."
            )

    @property
    def patch_head(self) -> Head:
        """The projection head of patches."""
        return Head(self.hidden, self.bottleneck, self.patch_outputs or self.outputs)

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Dino."""
        params = super().init(rng, spec)
        rows, columns = self.model.grid(spec["views"].shape[1:3])
        if self._most(rows * columns) < 1:
            raise UserError(
                f"task.mask_ratio={self.mask_ratio} of {rows} x {columns} patches masks none; use a larger share, a smaller patch "
                "or larger views."
            )
        if self.patch_outputs is None:
            return params
        width = params["head"]["dense_0"]["kernel"].shape[0]
        return {
            **params,
            "patch_head": self.patch_head.init(task.stream(rng, "patch_head"), jnp.zeros((1, width)))["params"],
        }

    def init_state(self, params: Params) -> TaskState:
        """See Dino."""
        return {**super().init_state(params), "patch_center": jnp.zeros((1, self.patch_outputs or self.outputs))}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; draws the masks of the large views."""
        b, v, *shape = batch["views"].shape
        rows, columns = self.model.grid((shape[0], shape[1]))
        low, high = self.mask_ratio
        ratios = jax.random.uniform(task.stream(rng, "ratio"), (b * v,), minval=low, maxval=high)
        chosen = jax.random.bernoulli(task.stream(rng, "masked"), self.mask_prob, (b * v,))
        targets = jnp.where(chosen, jnp.floor(ratios * rows * columns), 0.0).astype(jnp.int32)
        masked = block_masks(task.stream(rng, "mask"), targets, (rows, columns), self.smallest_block)
        return batch | {"masked": rearrange(masked, "(b v) n -> b v n", b=b)}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Dino; stats: the means of the teacher's scores, for both centres."""
        seen = self.encode(params, batch["views"], task.stream(rng, "dropout"), batch["masked"])
        whole = self.encode(state["teacher"], batch["views"])
        scores = self.score(state["teacher"], whole.features)
        targets = self.targets(scores, state["center"], state["temperature"])
        patches = self.patch_scores(params, state, seen, whole, batch["masked"])
        patch_targets = self.patch_targets(patches, state)
        of_views = self.pair_loss(targets, params, state, seen, batch, rng)
        of_patches = self.patch_loss(patches, patch_targets)
        terms = self.regularizers(state, seen, batch)
        loss = of_views + self.patch_weight * of_patches + sum(terms.values())
        metrics = {
            "loss_views": of_views,
            "loss_patches": of_patches,
            "teacher_entropy": entropy(targets).mean(),
            **terms,
        }
        return loss, Aux(metrics, self.centers(scores, state, whole))

    def centers(self, scores: Float[Array, "b v k"], state: TaskState, whole: EncodedViews) -> dict[str, Array]:
        """Return the means of the teacher's scores of views and of all patches."""
        patch_scores = self._score_patches(state["teacher"], whole.tokens)
        return {
            "center": scores.mean(axis=1).mean(axis=0, keepdims=True),
            "patch_center": patch_scores.mean(axis=(1, 2)).mean(axis=0, keepdims=True),
        }

    def patch_scores(
        self, params: Params, state: TaskState, seen: EncodedViews, whole: EncodedViews, masked: Array
    ) -> PatchScores:
        """Return the scores of the masked patches, which are gathered first because heads are wide."""
        most = self._most(masked.shape[2])
        chosen: Int[Array, "b v m"] = jnp.argsort(~masked, axis=2)[:, :, :most]
        counts = jnp.take_along_axis(masked, chosen, axis=2)
        theirs, ours = (jnp.take_along_axis(x, chosen[..., None], axis=2) for x in (whole.tokens, seen.tokens))
        learns = state["last_layer_learns"]
        return PatchScores(
            self._score_patches(state["teacher"], theirs), self._score_patches(params, ours, learns), counts
        )

    def patch_targets(self, patches: PatchScores, state: TaskState) -> Float[Array, "b v m k"]:
        """Return the teacher's probabilities of the masked patches."""
        center = state["patch_center"][None, None]
        return jax.lax.stop_gradient(jax.nn.softmax((patches.teacher - center) / state["temperature"]))

    def patch_loss(self, patches: PatchScores, targets: Float[Array, "b v m k"]) -> Float[Array, ""]:
        """Return the mean loss over each view's masked patches, 0 for a view without any, averaged over the views."""
        log_probs = jax.nn.log_softmax(patches.student / self.student_temperature)
        losses = jnp.where(patches.counts, -(targets * log_probs).sum(axis=-1), 0.0)
        return (losses.sum(axis=2) / jnp.maximum(patches.counts.sum(axis=2), 1)).mean(axis=1).mean()

    def _most(self, patches: int) -> int:
        return int(self.mask_ratio[1] * patches)

    def _score_patches(self, params: Params, features: Float[Array, "... d"], learns: Array | float = 1.0) -> Array:
        head = params["head"] if self.patch_outputs is None else params["patch_head"]
        scores: Any = self.patch_head.apply({"params": head}, features, learns)
        return scores
