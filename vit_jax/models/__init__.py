"""Networks; chosen by `model`, whose `variant` sets the fields of a row of the size table."""

from flax.linen import Module as KIND

from vit_jax.models.sizes import fill_variant as fill

__all__ = ["KIND", "fill"]
