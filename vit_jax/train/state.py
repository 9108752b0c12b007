"""The state of a training run."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.tasks.task import Task
from vit_jax.types import Params


@flax.struct.dataclass
class State:
    """Everything that a step reads and writes. `ema` is the running average of the parameters, or None."""

    step: Any  # int32 []; a shape or a sharding where the tree is one of those
    params: Any
    opt_state: Any
    ema: Any

    @property
    def weights(self) -> Params:
        """What is evaluated: the running average where there is one."""
        return self.params if self.ema is None else self.ema


def initial_state(
    task: Task, tx: optax.GradientTransformation, image_shape: tuple[int, int, int], *, seed: int, ema: bool = False
) -> State:
    """The state before the first step for images of (h, w, c): a pure function, to be compiled or only shape-checked."""
    params = task.init(jax.random.key(seed), image_shape)
    # A copy, as the step is donated every buffer of the state, each once.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return State(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), ema=average)
