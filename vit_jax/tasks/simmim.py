"""Masked image modelling: predict raw pixels of masked patches with a linear layer (SimMIM, arXiv:2111.09886)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.tasks import task
from vit_jax.tasks.masks import check_ratio, masked_share, random_masks
from vit_jax.tasks.pretraining import Pretraining, need_tiles, patch_pixels
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState
from vit_jax.types import Count, Params, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Simmim(Pretraining):
    """The mean absolute error of the pixels of masked patches, which the network sees as its mask token (section 3).

    mask_ratio of the cells of unit x unit patches are masked. The paper masks 60 % in cells of 32 px, that is, of 2 x 2
    patches for a ViT with patches of 16 px, and normalises images with ImageNet's mean and standard deviation.
    """

    mask_ratio: float = 0.6
    unit: Count = 2
    decomposable = True

    def __post_init__(self):
        super().__post_init__()
        check_ratio("mask_ratio", self.mask_ratio)
        if self.unit < 1:
            raise UserError(f"task.unit is {self.unit}; expected at least 1 patch.")
        self.need_mask_token()

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        shape = spec["image"].shape
        rows, columns = need_tiles("Simmim", self.model, shape)
        random_masks(rng, 1, (rows, columns), self.mask_ratio, self.unit)
        backbone = self.init_backbone(rng, shape)
        # The initialization of torch's layers.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        decoder = nn.Dense(shape[0] // rows * (shape[1] // columns) * shape[2], kernel_init=init)
        images = jax.ShapeDtypeStruct((1, *shape), "uint8")
        width = jax.eval_shape(self.tokens, backbone, images).shape[2]
        return {
            "backbone": backbone,
            "decoder": decoder.init(task.stream(rng, "decoder"), jnp.zeros((1, 1, width)))["params"],
        }

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; draws the masks."""
        images = batch["image"]
        grid = self.model.grid(images.shape[1:3])
        masked = random_masks(task.stream(rng, "mask"), len(images), grid, self.mask_ratio, self.unit)
        return {"image": images, "masked": masked}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task."""
        images, masked = self.normalize(batch["image"]), batch["masked"]
        tokens = self.tokens(params["backbone"], batch["image"], rng, masked=masked)
        kernel, bias = params["decoder"]["kernel"], params["decoder"]["bias"]
        errors = jnp.abs(tokens @ kernel + bias[None, None] - patch_pixels(images, self.model.grid(images.shape[1:3])))
        return masked_share(errors.mean(axis=2), masked).mean(), Aux({})
