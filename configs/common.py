"""Every key of a training config with its default; vit_jax/config/schema.py has each key once, with its reason."""

import ml_collections

from vit_jax.config import schema


def get_config() -> ml_collections.ConfigDict:
    """Return a config without model, data and evaluators; recipes fill those in."""
    return schema.defaults()
