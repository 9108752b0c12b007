"""Tune a text tower to a locked image tower (LiT, arXiv:2111.07991)."""

import dataclasses

import jax
from jaxtyping import Array, Float

from vit_jax.tasks.clip import Clip
from vit_jax.tasks.task import Batch
from vit_jax.types import Params, Rng


@dataclasses.dataclass(frozen=True)
class Lit(Clip):
    """The loss of Clip with a frozen image tower in inference mode: no dropout and no gradient (section 3, "Lu").

    Initialize the tower with `init` and keep it with freeze="^backbone/". With `drop('image')` in data.preprocess and
    the tower's `features` in the examples (`vit features`), it does not run in training; image_shape then gives the
    shape of the images at inference.
    """

    def embed_images(self, params: Params, batch: Batch, rng: Rng | None = None) -> Float[Array, "b d"]:
        """See Towers."""
        locked = {**params, "backbone": jax.lax.stop_gradient(params["backbone"])}
        return super().embed_images(locked, batch, None)
