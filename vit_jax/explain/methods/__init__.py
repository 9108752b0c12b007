"""Methods to inspect a network, one per file; `vit explain --method=NAME` selects them."""

from vit_jax.explain.method import Method as KIND

__all__ = ["KIND"]
