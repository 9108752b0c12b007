"""The state of a training run."""

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax import trees
from vit_jax.tasks.task import Task
from vit_jax.types import Params, UserError


@flax.struct.dataclass
class State:
    """Everything that a step reads and writes.

    `params` are those that are trained, `frozen` the rest, which stay as they began: together they are the model's. `ema` is
    the running average of `params`, or None.
    """

    step: Any  # int32 []; a shape or a sharding where the tree is one of those
    params: Any
    opt_state: Any
    ema: Any
    frozen: Any

    @property
    def weights(self) -> Params:
        """All parameters as they are evaluated: the running average where there is one."""
        return trees.join(self.params if self.ema is None else self.ema, self.frozen)

    def evaluated(self, name: str) -> dict[str, Params]:
        """The parameters that an evaluation sees, by its title: `name`, and beside a running average `name_raw` as well."""
        both = {name: self.weights}
        return both if self.ema is None else both | {f"{name}_raw": trees.join(self.params, self.frozen)}


def initial_state(
    task: Task,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    params: Params | None = None,
    *,
    seed: int,
    ema: bool = False,
    freeze: re.Pattern[str] | None = None,
) -> State:
    """The state before the first step for images of (h, w, c): a pure function, to be compiled or only shape-checked.

    Without `params` they are random. What `freeze` finds in a parameter's name is frozen; raises UserError where it finds none,
    or all.
    """
    params = task.init(jax.random.key(seed), image_shape) if params is None else params
    frozen: Params = {}
    if freeze is not None:
        frozen, params = trees.split(params, lambda name: freeze.search(name) is not None)
        if not frozen or not params:
            example = next(iter(trees.flatten(frozen or params)))
            raise UserError(
                f"freeze={freeze.pattern!r} finds {'every' if frozen else 'no'} parameter; names look like {example!r}."
            )
    # A copy, as the step is donated every buffer of the state, each once.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return State(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), ema=average, frozen=frozen)
