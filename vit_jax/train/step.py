"""The training step: one pure function of (state, batch), compiled by jit over a mesh or mapped by pmap."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax import sharding, trees
from vit_jax.grads.gradient import Batch, Gradient, Metrics
from vit_jax.optim.schedules import Schedule
from vit_jax.tasks.task import Task
from vit_jax.train.state import State
from vit_jax.types import Params, UserError

Step = Callable[[State, Batch], tuple[State, Metrics]]
AXIS = "batch"  # of pmap


def make_step(
    task: Task,
    tx: optax.GradientTransformation,
    learning_rate: Schedule,
    gradient: Gradient,
    *,
    seed: int,
    ema_decay: float | None = None,
    axis: str | None = None,
) -> Step:
    """The step as a pure function. With `axis` it sees one shard of the batch and averages over that mapped axis.

    Its randomness is a function of (seed, step), and of the shard where there is one. Metrics: loss and those of the task,
    lr, and the norms of gradient (before clipping), update and new parameters.
    """

    def joined_loss(frozen: Params, params: Params, *rest):
        return task.loss(trees.join(params, frozen), *rest)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if axis:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
        metrics, grads = gradient(functools.partial(joined_loss, state.frozen), state.params, batch, rng)
        if axis:
            metrics, grads = jax.lax.pmean((metrics, grads), axis)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "lr": jnp.asarray(learning_rate(state.step), jnp.float32),
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


def compile_step(
    make: Callable[..., Step], task: Task, mesh: Mesh, shardings: State, parallel: Literal["jit", "pmap"]
) -> Step:
    """The step made by `make(axis=...)`, compiled for global batches on a mesh; under "jit" the state is donated to it.

    Under "pmap" every device holds the whole state, so that state and checkpoints are the same as under "jit".
    """
    if parallel == "jit":
        batch = sharding.batch_sharding(mesh)
        return jax.jit(make(), in_shardings=(shardings, batch), out_shardings=(shardings, None), donate_argnums=0)
    if not task.per_example:
        raise UserError(
            f"parallel='pmap' averages shards, but the loss of {type(task).__name__} is no mean over examples; use 'jit'."
        )
    if set(mesh.shape) != {"data"}:
        raise UserError(
            f"parallel='pmap' is data parallel only; found mesh={dict(mesh.shape)}. Use mesh=dict(data=-1) or 'jit'."
        )
    return jax.pmap(make(axis=AXIS), axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=list(mesh.devices.flat))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, parallel: Literal["jit", "pmap"]) -> dict[str, Any]:
    """This process's rows of a global batch as the compiled step takes them."""
    if parallel == "jit":
        return sharding.put_batch(batch, mesh)
    local = mesh.local_mesh.devices.size
    return {key: rows.reshape(local, -1, *rows.shape[1:]) for key, rows in batch.items()}
