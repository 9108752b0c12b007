"""Data sets; `data.source` chooses one."""

from vit_jax.data.source import Source as KIND

__all__ = ["KIND"]
