"""The computation of training: one step, which fit, plan and bench share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

from vit_jax import flops, sharding
from vit_jax.grads.gradient import Gradient
from vit_jax.tasks.task import Task
from vit_jax.train.state import State
from vit_jax.train.step import PureStep, Step, compile_step, make_step
from vit_jax.types import Params

# Fields that change a network's operations to save memory or compile time, with their plain values.
PLAIN = {"remat": "none", "scan": False, "attention": "plain"}


@dataclasses.dataclass(frozen=True)
class Parts:
    """The computation of training for batches of one layout: the same step for fit, plan and bench.

    init(params): the initial state; None means random parameters. make_step(axis=...): the pure step. constants: arrays
    of the task and of data on the devices. batch: shapes of a global batch. norm_scaled: the parameters whose updates
    the optimiser scales by their norms.
    """

    task: Task
    gradient: Gradient
    init: Callable[[Params | None], State]
    make_step: Callable[..., PureStep]
    constants: Params
    batch: Mapping[str, jax.ShapeDtypeStruct]
    steps: int
    parallel: Literal["jit", "pmap"]
    seed: int
    rules: sharding.Rules
    fetch: Callable | None
    norm_scaled: frozenset[str]

    @functools.cached_property
    def shapes(self) -> State:
        """Shapes of the state."""
        return jax.eval_shape(self.init, None)

    def shardings(self, mesh: jax.sharding.Mesh) -> State:
        """Return the sharding of each array of the state."""
        return sharding.tree_sharding(self.shapes, mesh, self.rules)

    def compile(self, mesh: jax.sharding.Mesh) -> Step:
        """Return the step on a mesh, traced; it is compiled at the first call."""
        return compile_step(
            self.make_step, self.task, self.constants, mesh, self.shapes, self.batch, self.parallel,
            seed=self.seed, rules=self.rules, fetch=self.fetch,
        )  # fmt: skip

    def model_flops(self) -> tuple[float, dict[str, int]]:
        """Return the FLOPs of a step, and how often it calls each uncounted primitive.

        They are counted for the plain network, without recomputation to save memory.
        """
        task = self.task
        if dataclasses.is_dataclass(task):
            fields = {field.name for field in dataclasses.fields(task.model)}
            plain: dict[str, Any] = {key: value for key, value in PLAIN.items() if key in fields}
            task = dataclasses.replace(task, model=task.model.clone(**plain))  # type: ignore[type-var]
        tx = optax.identity()
        step = make_step(task, tx, lambda step: 0.0 * step, self.gradient, seed=0, fetch=self.fetch)
        constants = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.constants)
        state = self.shapes.replace(opt_state=tx.init(None), ema=None)  # type: ignore[attr-defined]
        return flops.count(step, constants, state, dict(self.batch))
