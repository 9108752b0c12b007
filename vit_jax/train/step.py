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
from vit_jax.grads.gradient import Batch, Gradient, Loss
from vit_jax.optim.schedules import Schedule
from vit_jax.tasks.task import Task, reading, with_images
from vit_jax.tasks.towers import Towers
from vit_jax.train.state import State
from vit_jax.types import Params, Rng, UserError

Metrics = dict[str, jax.Array]
Step = Callable[[State, Batch], tuple[State, Metrics]]
# (the task's and the data's constants, state, batch) -> (state, metrics)
PureStep = Callable[[Params, State, Batch], tuple[State, Metrics]]
Fetch = Callable[[Mapping[str, jax.Array], Batch, Rng], Batch]
AXIS = "batch"  # of pmap
# fold_in constant for augmentation on the devices, so that it does not change the task's random numbers.
AUGMENTATION = 1


def step_keys(seed: int, step: Any) -> tuple[Rng, Rng]:
    """Return the keys of a step: for preparing its batch, and for the loss (dropout and other streams)."""
    prepare, loss = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return prepare, loss


def prepared(task: Task, fetch: Fetch | None, constants: Params, batch: Batch, rng: Rng) -> Batch:
    """Prepare a whole batch for the loss, fetched from data on the devices if `fetch` is given."""
    if fetch is not None:
        batch = fetch(constants["data"], batch, jax.random.fold_in(rng, AUGMENTATION))
    size = len(next(iter(batch.values())))
    batch = with_images(batch)
    with reading(task, batch):
        result = task.prepare(batch, rng, constants["task"])
    wrong = [key for key, x in trees.flatten(result).items() if x.shape[:1] != (size,)]
    if wrong:
        raise UserError(
            f"{type(task).__name__}.prepare returns {', '.join(wrong)} without the {size} examples as the leading dimension; "
            "keep it, so that batches can be split and sharded."
        )
    return result


def _shape_of(found: Any) -> str:
    """Return what a task's loss returned, such as (array, dict)."""
    if isinstance(found, tuple):
        return f"({', '.join(_shape_of(x) for x in found)})"
    return "an array" if isinstance(found, jax.Array) else f"a {type(found).__name__}"


def checked_loss(task: Task, found: Any) -> Any:
    """Return the traced output of a task's loss; raises UserError if it is malformed."""
    name = type(task).__name__
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], tuple) and len(found[1]) == 2):
        raise UserError(f"{name}.loss returns {_shape_of(found)}; expected (loss, Aux(metrics, stats)).")
    shapes = {"the loss": found[0], **{f"the metric {key!r}": x for key, x in found[1][0].items()}}
    for what, x in shapes.items():
        if getattr(x, "shape", None) != ():
            raise UserError(
                f"{name}.loss: {what} has the shape {getattr(x, 'shape', None)}; expected a mean, a scalar."
            )
    return found


def checked_state(task: Task, new: Any, old: Any) -> Any:
    """Return the traced, updated state of a task; raises UserError if it does not match the old state."""
    after, before = trees.flatten(new), trees.flatten(old)
    lines = trees.differences(after, before)
    lines += [
        f"dtype: {k} is {x.dtype}, expected {before[k].dtype}"
        for k, x in after.items()
        if not lines and x.dtype != before[k].dtype
    ]
    if lines:
        raise UserError(f"{type(task).__name__}.update returns another state than init_state: {'; '.join(lines[:5])}.")
    return new


def loss_of(task: Task, state: State) -> Loss:
    """Return the loss of a task as a function of the trained parameters; only two towers have it in two parts."""

    def whole(params: Params, batch: Batch, rng: Rng) -> Any:
        with reading(task, batch):
            return checked_loss(task, task.loss(trees.join(params, state.frozen), state.state, batch, rng))

    if not isinstance(task, Towers) or type(task).loss is not Towers.loss:
        return Loss(whole)

    def encode(params: Params, batch: Batch, rng: Rng) -> Any:
        with reading(task, batch):
            return task.encode(trees.join(params, state.frozen), batch, rng)

    def of_encoded(params: Params, encoded: Any, batch: Batch) -> Any:
        return checked_loss(task, task.loss_of(trees.join(params, state.frozen), encoded, batch))

    return Loss(whole, encode, of_encoded)


def make_step(
    task: Task,
    tx: optax.GradientTransformation,
    learning_rate: Schedule,
    gradient: Gradient,
    *,
    seed: int,
    peak: float = 1.0,
    ema_decay: float | None = None,
    fetch: Fetch | None = None,
    axis: str | None = None,
) -> PureStep:
    """Return the step as a pure function of ({"task": constants, "data": arrays}, state, batch).

    With `axis` it takes one shard of a prepared batch, and averages over that mapped axis. Its randomness is a function
    of (seed, step) and, with `axis`, of the shard. peak: the highest learning rate. Metrics: loss, the task's metrics,
    lr, and the norms of gradient (before clipping), update and new parameters.
    """

    def step(constants: Params, state: State, batch: Batch) -> tuple[State, Metrics]:
        rng_prepare, rng = step_keys(seed, state.step)
        if axis:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
        else:
            batch = prepared(task, fetch, constants, batch, rng_prepare)
        average = functools.partial(jax.lax.pmean, axis_name=axis) if axis else lambda tree: tree
        lr = jnp.asarray(learning_rate(state.step), jnp.float32)

        metrics, stats, grads = gradient(
            loss_of(task, state), state.params, batch, rng, average, lr / peak if peak else lr
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = {
            "lr": lr,
            "grad_norm": trees.global_norm(grads),
            "update_norm": trees.global_norm(updates),
            "param_norm": trees.global_norm(params),
        }
        ema = state.ema
        if ema is not None and ema_decay is not None:
            # Average over fewer steps at first, since the initial weights are random.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda average, new: average + (1.0 - decay) * (new - average), ema, params)
        new = state.replace(  # type: ignore[attr-defined]
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            state=checked_state(
                task, task.update(trees.join(params, state.frozen), state.state, stats, state.step), state.state
            ),
        )
        return new, {**metrics, **norms}

    return step


def jit_step(step: PureStep, constants: Params, mesh: Mesh, shardings: State, rules: sharding.Rules = ()) -> Any:
    """Return the step (constants, state, batch) for global batches, jitted over a mesh; the state is donated."""
    return jax.jit(
        sharding.on_mesh(step, mesh),
        in_shardings=(sharding.tree_sharding(constants, mesh, rules), shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=1,
        compiler_options=sharding.compiler_options(mesh),
    )


def compile_step(
    make: Callable[..., PureStep],
    task: Task,
    constants: Params,
    mesh: Mesh,
    shapes: State,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    parallel: Literal["jit", "pmap"],
    *,
    seed: int,
    rules: sharding.Rules = (),
    fetch: Fetch | None = None,
) -> Step:
    """Return the step that `make(axis=...)` makes, for states and global batches of these shapes on a mesh.

    The step is traced completely, so that a mistake in any part shows now, and compiled when it is first called. With
    "pmap" every device holds the whole state, so that state and checkpoints are the same as with "jit", and whole
    batches are prepared before they are sharded, so that mixing is the same too.
    """
    of_constants = sharding.tree_sharding(constants, mesh, rules)
    if parallel == "jit":
        on_devices, states = jax.device_put(constants, of_constants), sharding.tree_sharding(shapes, mesh, rules)
        jitted = jit_step(make(), constants, mesh, states, rules)
        # With the shardings of the arrays, so that the first call reuses the trace.
        jitted.trace(
            on_devices,
            sharding.with_shardings(shapes, states),
            sharding.with_shardings(batch, sharding.batch_sharding(mesh)),
        )
        return functools.partial(jitted, on_devices)
    if not task.decomposable:
        raise UserError(
            f"parallel='pmap' averages shards of the batch, but the loss of {type(task).__name__} is not a mean over examples "
            "(decomposable=False); use parallel='jit'."
        )
    if mesh.shape.get("data") != mesh.size:
        raise UserError(
            f"parallel='pmap' is data parallel only; found mesh={dict(mesh.shape)}. Use mesh=dict(data=-1) or 'jit'."
        )
    trace_mapped(make, functools.partial(prepared, task, fetch), constants, shapes, batch, mesh.size)
    on_devices, devices = jax.device_put(constants, of_constants), list(mesh.devices.flat)
    mapped = jax.pmap(make(axis=AXIS), axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)
    batches = sharding.batch_sharding(mesh)
    prepare = jax.jit(
        lambda constants, step, batch: prepared(task, fetch, constants, batch, step_keys(seed, step)[0]),
        in_shardings=(of_constants, None, batches),
        out_shardings=batches,
    )

    def by_device(x: jax.Array) -> jax.Array:
        rows = multihost_utils.global_array_to_host_local_array(x, mesh, PartitionSpec("data"))
        return rows.reshape(mesh.local_mesh.devices.size, -1, *rows.shape[1:])

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # The loss does not read the constants.
        return mapped({}, state, jax.tree.map(by_device, prepare(on_devices, state.step, batch)))

    return step


def trace_mapped(
    make: Callable[..., PureStep],
    prepare: Callable[[Params, Batch, Rng], Batch],
    constants: Params,
    state: State,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    shards: int,
) -> None:
    """Trace what pmap compiles, for shapes: preparing the whole batch, and the step for one of its `shards`."""
    whole = jax.eval_shape(prepare, constants, batch, jax.random.key(0))
    parts = jax.tree.map(lambda x: jax.ShapeDtypeStruct((shards, x.shape[0] // shards, *x.shape[1:]), x.dtype), whole)
    jax.eval_shape(jax.vmap(make(axis=AXIS), (None, None, 0), axis_name=AXIS), {}, state, parts)
