"""Ways to compute the gradient; chosen by `grad`."""

from vit_jax.grads.gradient import Gradient as KIND

__all__ = ["KIND"]
