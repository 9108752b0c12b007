"""FlexiViT: one network for patches of many sizes (arXiv:2212.08013)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.layers.initial import INITIAL
from vit_jax.layers.patch_embed import PatchEmbed, convolved, patch_grid
from vit_jax.layers.resize import resize_matrix
from vit_jax.models.vit import ViT, pair
from vit_jax.types import Images, Logits, Tokens, Units, UserError


class FlexiEmbed(PatchEmbed):
    """A patch embedding whose kernel is stored for patches of `base` pixels, and resized to patch_size.

    A patch that is enlarged to `base` by a bilinear resize keeps its embedding: the pseudo-inverse resize of section 3.4.
    """

    base: int = 32

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "b rows cols d"]:
        """See PatchEmbed."""
        patch_grid((images.shape[1], images.shape[2]), self.patch_size, self.stride, self.padding, self.source)
        kernel = self.param(
            "kernel",
            INITIAL[self.weight_init].patches,
            (self.base, self.base, images.shape[-1], self.width),
            self.param_dtype,
        )
        rows, cols = (
            jnp.asarray(np.linalg.pinv(resize_matrix(self.base, size, "half_pixel")), jnp.float32)
            for size in self.patch_size
        )
        resized = jnp.einsum("ip,jq,ijcd->pqcd", rows, cols, kernel.astype(jnp.float32))
        out = convolved(images.astype(self.dtype), resized.astype(self.dtype), self.stride)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
        return out + bias.astype(out.dtype).reshape(1, 1, 1, -1)


class FlexiViT(ViT):
    """A ViT that draws a patch size from `patch_sizes` in each training step, for the whole batch (section 3.3).

    patch_size is used at inference; `vit convert --patch_size` writes the trained network as a ViT of another one. The
    patch kernel is stored for `base_patch` pixels, the learned positions for a grid of `posemb_grid` (7 x 7 in the
    paper); both are resized. Every size is compiled into the step, so that none compiles later. Objectives that call the
    network's stages, such as mae.Mae, train only at patch_size.
    """

    patch_sizes: tuple[Units, ...] = (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)
    base_patch: Units = 32
    posemb_grid: tuple[int, int] | None = (7, 7)

    def __post_init__(self):
        super().__post_init__()
        if not self.patch_sizes or min(self.patch_sizes) < 1:
            raise UserError(
                f"model.patch_sizes={self.patch_sizes}; expected sizes of at least 1 pixel, such as (8, 16, 32)."
            )
        if self.stem is not None or self.stride is not None or self.padding != "valid" or not self.embed_bias:
            raise UserError(
                "A FlexiViT has patches that tile the image; leave stem, stride, padding and embed_bias unset."
            )

    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """See ViT; with train=True the patch size is drawn from the rng "patch"."""
        if not train or self.is_initializing():
            return super().__call__(images, train=train)
        drawn = jax.random.randint(self.make_rng("patch"), (), 0, len(self.patch_sizes))
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        variables = {"params": self.variables["params"]}

        def at(size: int) -> Any:
            model = self.clone(patch_size=size, patch_sizes=(size,), parent=None)
            return lambda: model.apply(variables, images, method=lambda m, x: ViT.__call__(m, x, train=True), rngs=rngs)

        return jax.lax.switch(drawn, [at(size) for size in self.patch_sizes])

    def _patches(self, images: Images) -> tuple[Tokens, tuple[int, int]]:
        patch = pair(self.patch_size)
        embed = FlexiEmbed(
            self.width, patch, patch, weight_init=self.weight_init, base=self.base_patch, **self._dtypes, name="embed"
        )
        x = embed(images)
        return rearrange(x, "b rows cols d -> b (rows cols) d"), (x.shape[1], x.shape[2])
