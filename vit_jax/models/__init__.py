"""Networks; one is chosen by `model`, whose `variant` stands for fields of the size table."""

from flax.linen import Module as KIND

from vit_jax.models.sizes import fill_variant as fill

__all__ = ["KIND", "fill"]
