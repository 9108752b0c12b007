"""Evaluators of a model; each is an entry of `evals`."""

from vit_jax.evals.evaluator import Evaluator as KIND

__all__ = ["KIND"]
