"""Ways to look inside a network, one a file; `vit explain --method=NAME` chooses them."""

from vit_jax.explain.method import Method as KIND

__all__ = ["KIND"]
