"""The ResNet of the hybrid models (BiT, arXiv:1912.11370; arXiv:2010.11929, section 3.1)."""

import re
from functools import partial
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array

from vit_jax.layers.conv import Bottleneck, FeatureMap, Stage, StdConv, WeightNorm
from vit_jax.types import Count, DtypeName, Images, Units, UserError


class ResNet(nn.Module):
    """A root that halves the image twice, then stages of bottleneck units, each stage but the first halving it once more.

    stages: the number of units of each stage; () is only the root. weight_norm="std" divides a kernel by its
    std + weight_eps, "var" by sqrt(variance + weight_eps). As the `stem` of a ViT it takes the ViT's dtypes.
    """

    stages: tuple[Count, ...]
    width: Units = 64
    norm_eps: float = 1e-6
    weight_norm: WeightNorm = "std"
    weight_eps: float = 1e-5
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    def __post_init__(self):
        super().__post_init__()
        if min(self.stages, default=1) < 1:
            raise UserError(f"A ResNet has stages={self.stages}; expected at least 1 unit in each stage.")
        if self.width < 1 or self.width % 32:
            raise UserError(f"A ResNet has width={self.width}; expected a multiple of 32, the groups of GroupNorm.")

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the feature map of an image of (height, width) pixels."""
        scale = 4 * 2 ** max(len(self.stages) - 1, 0)
        return -(-image_size[0] // scale), -(-image_size[1] // scale)

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 for the root, 1 + i for stage i."""
        stage = re.match(r"stage_(\d+)/", name)
        return 1 + int(stage[1]) if stage else 0

    def __call__(self, images: Images) -> FeatureMap:
        """Map normalised images [b, h, w, c] to a feature map [b, rows, cols, channels]."""
        return self._stages(images)[-1]

    def features(self, images: Images, *, train: bool = False) -> dict[str, Any]:
        """Return `tokens` [b, n, d] of `grid`, `pooled` [b, d], and `stages`, the feature maps of root and stages."""
        stages = self._stages(images)
        tokens = rearrange(stages[-1], "b rows cols d -> b (rows cols) d")
        grid = stages[-1].shape[1:3]
        return {"tokens": tokens, "grid": grid, "prefix": 0, "pooled": tokens.mean(axis=1), "stages": stages}

    @nn.compact
    def _stages(self, images: Images) -> list[Array]:
        weights = (self.weight_norm, self.weight_eps)
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        x = StdConv(self.width, 7, 2, *weights, **dtypes, name="root")(images)
        x = nn.relu(nn.GroupNorm(epsilon=self.norm_eps, **dtypes, name="root_norm")(x))
        maps = [nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")]
        unit = partial(
            Bottleneck, norm_eps=self.norm_eps, weight_norm=self.weight_norm, weight_eps=self.weight_eps, **dtypes
        )
        for i, units in enumerate(self.stages):
            maps.append(Stage(unit, units, self.width * 2**i, 2 if i > 0 else 1, name=f"stage_{i}")(maps[-1]))
        return maps
