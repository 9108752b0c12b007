"""Heads that map the feature maps of a backbone to outputs for each pixel; chosen by `task.head`."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.bilinear import Map, adaptive_mean, bilinear
from vit_jax.layers.block import Block
from vit_jax.types import Classes, Count, DtypeName, Units, UserError

KIND = nn.Module
Maps = Sequence[Any]  # [b, h, w, d] of each chosen layer, the finest first; of a plain ViT all of one size


class _Head(nn.Module):
    """Base class for heads, with their batch norm."""

    def _norm(self, train: bool, name: str) -> nn.Module:
        return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)


class Linear(_Head):
    """A linear layer on the concatenated maps, after a batch norm (DINOv2, arXiv:2304.07193, section 7.4).

    norm: whether to use the batch norm. dropout: drops whole channels before the linear layer.
    """

    num_classes: Classes = 0
    norm: bool = True
    std: float = 0.01
    dropout: float = 0.0
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool = False) -> Map:
        """Map feature maps to [b, h, w, num_classes] in the size of the first map."""
        x = jnp.concatenate([bilinear(x, maps[0].shape[1:3]) for x in maps], axis=-1)
        if self.norm:
            x = self._norm(train, "norm")(x)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
        kernel = nn.initializers.normal(self.std)
        dtype, param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
        return nn.Dense(self.num_classes, kernel_init=kernel, dtype=dtype, param_dtype=param_dtype, name="out")(x)


class MaskTransformer(_Head):
    """Segmenter's decoder (arXiv:2105.05633, section 3.2): masks are products of encoded patches and class embeddings.

    It reads the last of the chosen layers. width: None for the backbone's width. num_heads: None for one head per 64
    units.
    """

    num_classes: Classes = 0
    depth: Count = 2
    width: Units | None = None
    num_heads: Count | None = None
    dropout: float = 0.1
    drop_path: float = 0.0
    norm_eps: float = 1e-5
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool = False) -> Map:
        """Map feature maps to [b, h, w, num_classes] in the size of the last map."""
        x = maps[-1]
        b, h, w, _ = x.shape
        width = self.width or x.shape[-1]
        heads = self.num_heads or max(1, width // 64)
        if width % heads:
            raise UserError(f"task.head: a width of {width} cannot be split into num_heads={heads}.")
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        normal = nn.initializers.truncated_normal(0.02)
        x = nn.Dense(width, kernel_init=normal, **dtypes, name="embed")(x.reshape(b, h * w, -1))
        classes = self.param("classes", normal, (1, self.num_classes, width), dtypes["param_dtype"])
        x = jnp.concatenate([x, jnp.tile(classes.astype(x.dtype), (b, 1, 1))], axis=1)
        for i in range(self.depth):
            block = Block(4 * width, heads, self.dropout, drop_path=self.drop_path, mlp="gelu", norm_eps=self.norm_eps,
                          weight_init="trunc_normal", **dtypes, name=f"block_{i}")  # fmt: skip
            x = block(x, deterministic=not train)
        x = nn.LayerNorm(self.norm_eps, **dtypes, name="norm")(x)
        projection = nn.initializers.normal(width**-0.5)
        pixels, masks = (
            nn.Dense(width, use_bias=False, kernel_init=projection, **dtypes, name=name)(part)
            for name, part in (("patch_projection", x[:, : h * w]), ("class_projection", x[:, h * w :]))
        )
        pixels, masks = (y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in (pixels, masks))
        products = jnp.einsum("bnd,bcd->bnc", pixels, masks)
        return nn.LayerNorm(1e-5, **dtypes, name="mask_norm")(products).reshape(b, h, w, self.num_classes)


class _ConvNorm(_Head):
    """A convolution without bias, a batch norm and a ReLU."""

    width: int
    side: int

    @nn.compact
    def __call__(self, x: Map, *, train: bool = False) -> Float[Array, "b h w d"]:
        """Map [b, h, w, c] to [b, h, w, width]."""
        x = nn.Conv(self.width, (self.side, self.side), use_bias=False, name="conv")(x)
        return nn.relu(self._norm(train, "norm")(x))


class UperNet(_Head):
    """UPerNet (arXiv:1807.10221): pooled context on the coarsest map, a feature pyramid to the finest map, and fusion.

    norms: first apply a LayerNorm to each map, as on the stages of a Swin. Maps of equal size, as from a plain ViT, are
    first resized to 4, 2, 1 and 1/2 times their size, or as many of these as there are maps. pooled: the sides of the
    pooled maps.
    """

    num_classes: Classes = 0
    width: Units = 512
    pooled: tuple[int, ...] = (1, 2, 3, 6)
    norms: bool = True

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool = False) -> Map:
        """Map feature maps to [b, h, w, num_classes] in the size of the finest map."""
        if self.norms:
            maps = [nn.LayerNorm(1e-5, name=f"norm_{i}")(x) for i, x in enumerate(maps)]
        if len(maps) > 1 and len({x.shape[1:3] for x in maps}) == 1:
            sizes = [[max(1, math.floor(side * 4 / 2**i)) for side in x.shape[1:3]] for i, x in enumerate(maps)]
            maps = [bilinear(x, (size[0], size[1])) for x, size in zip(maps, sizes, strict=True)]
        last = len(maps) - 1

        def conv(side: int, name: str, x: Map) -> Float[Array, "b h w d"]:
            return _ConvNorm(self.width, side, name=name)(x, train=train)

        size = (maps[-1].shape[1], maps[-1].shape[2])
        context = [
            bilinear(conv(1, f"pool_{i}", adaptive_mean(maps[-1], side)), size) for i, side in enumerate(self.pooled)
        ]
        laterals = [conv(1, f"lateral_{i}", x) for i, x in enumerate(maps[:-1])]
        laterals.append(conv(3, "context", jnp.concatenate([maps[-1], *context], axis=-1)))
        for i in range(last, 0, -1):
            laterals[i - 1] = laterals[i - 1] + bilinear(
                laterals[i], (laterals[i - 1].shape[1], laterals[i - 1].shape[2])
            )
        fused = [conv(3, f"fuse_{i}", x) for i, x in enumerate(laterals[:-1])] + laterals[-1:]
        finest = (fused[0].shape[1], fused[0].shape[2])
        x = conv(3, "fuse", jnp.concatenate([bilinear(x, finest) for x in fused], axis=-1))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.02), name="out")(x)
