"""How many operations a training step is worth, whatever way it is computed."""

from collections.abc import Mapping
from typing import Any

import jax

from vit_jax import flops
from vit_jax.data.pipeline import Spec
from vit_jax.train.run import batch_shapes, build_parts

# Fields that change how a model is computed and not what.
PLAIN = {"remat": "none", "scan": False, "attention": "plain"}


def model_flops(config: Mapping[str, Any], spec: Spec, steps: int) -> float:
    """The operations of a step of the same model with plain attention and nothing computed again, of all devices."""
    changed = {key: value for key, value in PLAIN.items() if config["model"].get(key) is not None}
    model = {**config["model"], **changed}
    task, init, make = build_parts({**config, "model": model}, spec, steps)
    return flops.count(make(), task.constants, jax.eval_shape(init, None), batch_shapes(spec, config["batch_size"]))[0]
