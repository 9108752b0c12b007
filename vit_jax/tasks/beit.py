"""Masked image modelling: predict visual tokens of masked patches (BEiT, arXiv:2106.08254, equation 2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.tasks import task
from vit_jax.tasks.masks import block_masks, check_ratio, masked_share
from vit_jax.tasks.pretraining import Pretraining
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState
from vit_jax.tasks.teacher import Teacher
from vit_jax.types import Params, Rng, Units, UserError


@dataclasses.dataclass(frozen=True)
class Beit(Pretraining):
    """Predict the codes of masked patches; they come from the config's `teacher`, a tokenizer trained with vqkd.VqKd.

    The loss is the cross-entropy. mask_ratio of the patches are masked in blocks of at least smallest_block; the
    network sees its mask token in their place. The paper masks 75 of 14 x 14 patches in blocks of at least 16.
    """

    teacher: Teacher | None = None
    codes: Units = 8192
    mask_ratio: float = 0.4
    smallest_block: Units = 16
    decomposable = True

    def __post_init__(self):
        super().__post_init__()
        check_ratio("mask_ratio", self.mask_ratio)
        self.need_mask_token()

    @property
    def constants(self) -> Params:
        """The tokenizer's weights."""
        return {} if self.teacher is None else self.teacher.weights

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        rows, columns = self.model.grid(spec["image"].shape[:2])
        if self._masked(rows * columns) < self.smallest_block:
            raise UserError(
                f"task.mask_ratio={self.mask_ratio} masks {self._masked(rows * columns)} of {rows} x {columns} patches, fewer than "
                f"task.smallest_block={self.smallest_block}; give smaller blocks or larger images."
            )
        decoder = nn.Dense(self.codes, kernel_init=nn.initializers.normal(0.02))
        made = decoder.init(task.stream(rng, "decoder"), jnp.zeros((1, 1, self.model.width)))
        return {"backbone": self.init_backbone(rng, spec["image"].shape), "decoder": made["params"]}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; draws the masks and computes the codes with the tokenizer."""
        if self.teacher is None:
            raise UserError("task.Beit has no tokenizer; name a run of task vqkd.VqKd with --config.teacher=DIR.")
        images = batch["image"]
        rows, columns = grid = self.model.grid(images.shape[1:3])
        codes, vocabulary = self.teacher.predict(constants, images, "codes"), getattr(self.teacher.task, "codes", None)
        if codes.shape[1:] != (rows * columns,) or vocabulary != self.codes:
            raise UserError(
                f"The tokenizer gives {codes.shape[1]} of {vocabulary} codes an image; task.codes is {self.codes}, and the "
                f"model has {rows} x {columns} patches: make both the same."
            )
        counts = jnp.full(len(images), self._masked(rows * columns))
        masked = block_masks(task.stream(rng, "mask"), counts, grid, self.smallest_block)
        return {"image": images, "masked": masked, "codes": codes}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; the metric is how often the code of a masked patch is predicted."""
        tokens = self.tokens(params["backbone"], batch["image"], rng, masked=batch["masked"])
        logits: Any = nn.Dense(self.codes).apply({"params": params["decoder"]}, tokens)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        losses = -jnp.take_along_axis(log_probs, batch["codes"][:, :, None], axis=2)[:, :, 0]
        hits = (logits.argmax(axis=2) == batch["codes"]).astype(jnp.float32)
        accuracy = masked_share(hits, batch["masked"]).mean()
        return masked_share(losses, batch["masked"]).mean(), Aux({"accuracy": accuracy})

    def _masked(self, patches: int) -> int:
        return int(self.mask_ratio * patches)
