"""How many operations a training step is worth, whatever way it is computed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from vit_jax import flops
from vit_jax.grads.gradient import Gradient
from vit_jax.tasks.task import Task
from vit_jax.train.state import State
from vit_jax.train.step import make_step

# What saves memory or compile time by other operations than those of the network itself.
PLAIN = {"remat": "none", "scan": False, "attention": "plain"}


def model_flops(
    task: Task, gradient: Gradient, state: State, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[float, dict[str, int]]:
    """The FLOPs that a step needs, and how often it calls something that is not counted; state and batch are shapes.

    They are those of the network itself: what is computed again to save memory does not count.
    """
    fields = {field.name for field in dataclasses.fields(task.model)}
    plain_fields: dict[str, Any] = {key: value for key, value in PLAIN.items() if key in fields}
    model = task.model.clone(**plain_fields)
    plain = dataclasses.replace(task, model=model)  # type: ignore[type-var]
    tx = optax.identity()
    step = make_step(plain, tx, lambda step: 0.0 * step, gradient, seed=0)
    constants = jax.eval_shape(lambda: task.constants)
    return flops.count(step, constants, state.replace(opt_state=tx.init(None), ema=None), dict(batch))  # type: ignore
