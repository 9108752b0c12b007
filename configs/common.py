"""Provide every key of a training config with its default; vit_jax/config/schema.py explains each key."""

import ml_collections

from vit_jax.config import schema


def get_config() -> ml_collections.ConfigDict:
    """Return a config without model, data and evaluators; recipes fill them in."""
    return schema.defaults()
