"""Data sets; one is chosen by `data.source`."""

from vit_jax.data.source import Source as KIND

__all__ = ["KIND"]
