"""The state of a training run."""

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax import trees
from vit_jax.tasks.task import Spec, Task, Weights
from vit_jax.types import Params, UserError


@flax.struct.dataclass
class State:
    """Everything that a step reads and writes.

    params: the trained parameters. frozen: all other parameters, which keep their initial values. ema: the running
    average of `params`, or None. state: the task's own state.
    """

    step: Any  # int32 []; or a shape or a sharding in a tree of these
    params: Any
    opt_state: Any
    ema: Any
    frozen: Any
    state: Any

    @property
    def all_params(self) -> Params:
        """Trained and frozen parameters joined."""
        return trees.join(self.params, self.frozen)

    def evaluated(self, task: Task) -> dict[str, Weights]:
        """Return the weights to evaluate by suffix: with a running average, that average and the "raw" weights."""
        if self.ema is None:
            return task.evaluated(self.all_params, self.state)
        raw = task.evaluated(self.all_params, self.state)
        averaged = task.evaluated(trees.join(self.ema, self.frozen), self.state)
        return averaged | {f"{suffix}_raw".lstrip("_"): weights for suffix, weights in raw.items()}


def title(name: str, suffix: str) -> str:
    """Return the name under which the results of an evaluator are logged: NAME, or NAME_SUFFIX."""
    return f"{name}_{suffix}" if suffix else name


def initial_state(
    task: Task,
    tx: optax.GradientTransformation,
    spec: Spec,
    params: Params | None = None,
    *,
    seed: int,
    ema: bool = False,
    freeze: re.Pattern[str] | None = None,
) -> State:
    """Return the state before the first step, for examples of these shapes; pure, so it can be compiled or shape-checked.

    Without `params` they are random. Parameters whose name matches `freeze` are frozen; raises UserError if none or all
    do.
    """
    params = task.init(jax.random.key(seed), spec) if params is None else params
    state = task.init_state(params)
    frozen: Params = {}
    if freeze is not None:
        frozen, params = trees.split(params, lambda name: freeze.search(name) is not None)
        if not frozen or not params:
            example = next(iter(trees.flatten(frozen or params)))
            raise UserError(
                f"freeze={freeze.pattern!r} finds {'every' if frozen else 'no'} parameter; names look like {example!r}."
            )
    # Copies, since every buffer of the state is donated to the step, each once.
    average = jax.tree.map(jnp.copy, params) if ema else None
    state = jax.tree.map(jnp.copy, state)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=average,
        frozen=frozen,
        state=state,
    )
