"""The training step: one pure function of (state, batch), compiled by jit over a mesh or mapped by pmap."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from vit_jax import sharding, trees
from vit_jax.grads.gradient import Batch, Gradient, Metrics
from vit_jax.optim.schedules import Schedule
from vit_jax.tasks.task import Task
from vit_jax.train.state import State
from vit_jax.types import Params, Rng, UserError

Step = Callable[[State, Batch], tuple[State, Metrics]]
AXIS = "batch"  # of pmap


def step_keys(seed: int, step: Any) -> tuple[Rng, Rng]:
    """The keys of a step: what becomes of its batch, and dropout and the like."""
    prepare, loss = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return prepare, loss


def make_step(
    task: Task,
    tx: optax.GradientTransformation,
    learning_rate: Schedule,
    gradient: Gradient,
    *,
    seed: int,
    peak: float = 1.0,
    ema_decay: float | None = None,
    axis: str | None = None,
) -> Callable[[Params, State, Batch], tuple[State, Metrics]]:
    """The step as a pure function of (the task's constants, state, batch).

    With `axis` it sees one shard of a batch that is prepared already, and averages over that mapped axis. Its randomness is a
    function of (seed, step), and of the shard where there is one. `peak` is the highest learning rate. Metrics: loss and those
    of the task, lr, and the norms of gradient (before clipping), update and new parameters.
    """

    def joined_loss(frozen: Params, params: Params, *rest):
        return task.loss(trees.join(params, frozen), *rest)

    def step(constants: Params, state: State, batch: Batch) -> tuple[State, Metrics]:
        rng_prepare, rng = step_keys(seed, state.step)
        if axis:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
        else:
            batch = task.prepare(batch, rng_prepare, constants)
        average = functools.partial(jax.lax.pmean, axis_name=axis) if axis else lambda tree: tree
        lr = jnp.asarray(learning_rate(state.step), jnp.float32)
        loss = functools.partial(joined_loss, state.frozen)
        metrics, grads = gradient(loss, state.params, batch, rng, average, lr / peak if peak else lr)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "lr": lr,
            "grad_norm": trees.global_norm(grads),
            "update_norm": trees.global_norm(updates),
            "param_norm": trees.global_norm(params),
        }
        ema = state.ema
        if ema is not None and ema_decay is not None:
            # Short averages first, as the initial weights are random.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda average, new: average + (1.0 - decay) * (new - average), ema, params)
        return State(step=state.step + 1, params=params, opt_state=opt_state, ema=ema, frozen=state.frozen), metrics

    return step


def jit_step(
    make: Callable[..., Callable[[Params, State, Batch], tuple[State, Metrics]]],
    constants: Params,
    mesh: Mesh,
    shardings: State,
    rules: sharding.Rules = (),
) -> Any:
    """The step (constants, state, batch) of global batches, jitted over a mesh; the state is donated to it."""
    places = sharding.tree_sharding(constants, mesh, rules)
    return jax.jit(
        sharding.on_mesh(make(), mesh),
        in_shardings=(places, shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=1,
        compiler_options=sharding.compiler_options(mesh),
    )


def compile_step(
    make: Callable[..., Callable[[Params, State, Batch], tuple[State, Metrics]]],
    task: Task,
    mesh: Mesh,
    shapes: State,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    parallel: Literal["jit", "pmap"],
    *,
    seed: int,
    rules: sharding.Rules = (),
) -> Step:
    """The step made by `make(axis=...)` for states and global batches of these shapes on a mesh.

    It is traced whole, so that a mistake in any part shows now, and compiled when it is first called. Under "pmap" every device
    holds the whole state, so that state and checkpoints are the same as under "jit", and batches are prepared whole before they
    are divided, so that mixtures are the same too.
    """
    places = sharding.tree_sharding(task.constants, mesh, rules)
    if parallel == "jit":
        constants, states = jax.device_put(task.constants, places), sharding.tree_sharding(shapes, mesh, rules)
        jitted = jit_step(make, task.constants, mesh, states, rules)
        # As the arrays will lie, so that the first call finds the trace.
        jitted.trace(constants, sharding.placed(shapes, states), sharding.placed(batch, sharding.batch_sharding(mesh)))
        return functools.partial(jitted, constants)
    if not task.per_example:
        raise UserError(
            f"parallel='pmap' averages shards, but the loss of {type(task).__name__} is no mean over examples; use 'jit'."
        )
    if mesh.shape.get("data") != mesh.size:
        raise UserError(
            f"parallel='pmap' is data parallel only; found mesh={dict(mesh.shape)}. Use mesh=dict(data=-1) or 'jit'."
        )
    trace_mapped(make, task, shapes, batch, mesh.size)
    constants, devices = jax.device_put(task.constants, places), list(mesh.devices.flat)
    mapped = jax.pmap(make(axis=AXIS), axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)
    batches = sharding.batch_sharding(mesh)
    prepare = jax.jit(
        lambda constants, step, batch: task.prepare(batch, step_keys(seed, step)[0], constants),
        in_shardings=(places, None, batches),
        out_shardings=batches,
    )

    def divided(x: jax.Array) -> jax.Array:
        rows = multihost_utils.global_array_to_host_local_array(x, mesh, PartitionSpec("data"))
        return rows.reshape(mesh.local_mesh.devices.size, -1, *rows.shape[1:])

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # The loss has no use for the constants.
        return mapped({}, state, jax.tree.map(divided, prepare(constants, state.step, batch)))

    return step


def trace_mapped(
    make: Callable[..., Callable], task: Task, state: State, batch: Mapping[str, jax.ShapeDtypeStruct], shards: int
) -> None:
    """Traces what pmap compiles, for shapes: the batch prepared whole, and the step of one of its `shards`."""
    prepared = jax.eval_shape(task.prepare, batch, jax.random.key(0), task.constants)
    divided = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((shards, x.shape[0] // shards, *x.shape[1:]), x.dtype), prepared
    )
    jax.eval_shape(jax.vmap(make(axis=AXIS), (None, None, 0), axis_name=AXIS), {}, state, divided)
