"""Base class and functions for objectives without labels."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.tasks.headless import Headless
from vit_jax.types import Images, UserError


class Pretraining(Headless):
    """An objective without labels."""

    @property
    def dtype(self) -> Dtype:
        """The dtype of the network's activations, which decoders and predictors share."""
        return getattr(self.model, "dtype", jnp.float32)

    def need_stages(self) -> None:
        """Raise UserError for a network whose tokens cannot be masked."""
        if not all(hasattr(self.model, stage) for stage in ("embed", "encode", "features", "num_prefix", "grid")):
            raise UserError(
                f"task.{type(self).__name__} masks tokens, which {type(self.model).__name__} cannot; use model type='vit.ViT'."
            )

    def need_mask_token(self) -> None:
        """Raise UserError for a network without a mask token."""
        if not getattr(self.model, "mask_token", False):
            raise UserError(f"task.{type(self).__name__} replaces masked patches; give model.mask_token=True.")


def patch_pixels(images: Images, grid: tuple[int, int]) -> Float[Array, "b patches o"]:
    """Return the pixels of each patch, row by row."""
    return rearrange(images, "b (i p) (j q) c -> b (i j) (p q c)", i=grid[0], j=grid[1])


def need_tiles(name: str, model: Any, image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the grid of a network's patches; raises UserError if they do not tile the image."""
    rows, columns = model.grid(image_shape[:2])
    strides = getattr(model, "stride", None)
    if image_shape[0] % rows or image_shape[1] % columns or strides not in (None, getattr(model, "patch_size", None)):
        raise UserError(
            f"task.{name} rebuilds patches that tile the image; leave model.stride and model.padding unset."
        )
    return rows, columns


def half_cosine(first: float, last: float, progress: Any) -> Array:
    """Interpolate from first to last along a half cosine, for a progress from 0 to 1."""
    share = 0.5 * (1.0 - jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return jnp.asarray(first + (last - first) * share, jnp.float32)


def ramp(first: float, last: float, step: Any, length: float | int) -> Array:
    """Interpolate linearly from first to last over the first `length` steps."""
    return jnp.asarray(first + (last - first) * jnp.clip(step / max(1.0, length), 0.0, 1.0), jnp.float32)


def moving_average(old: Any, new: Any, momentum: Any) -> Any:
    """Return momentum * old + (1 - momentum) * new."""
    return jax.tree.map(lambda a, b: momentum * a + (1.0 - momentum) * b, old, new)
