"""Objectives; one is chosen by `task`."""

from vit_jax.tasks.task import Task as KIND

__all__ = ["KIND"]
