"""Device meshes, and the sharding of each array of the batch and of the state."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax import trees
from vit_jax.types import UserError, compile_regex

# The batch is sharded over these axes, if the mesh has them.
BATCH_AXES = ("data", "fsdp")
# Regex of names -> mesh axis or None for each dimension.
Rules = Sequence[tuple[str, Sequence[str | None]]]
# Tensor parallelism (arXiv:1909.08053, section 3): heads and hidden units sharded, for two all-reduces per block each way.
TENSOR_RULES: Rules = (
    (r"attn/(query|key|value)/kernel$", (None, "tensor", None)),
    (r"attn/(query|key|value)/bias$", ("tensor", None)),
    (r"attn/out/kernel$", ("tensor", None, None)),
    (r"attn/relative_bias$", (None, "tensor")),
    (r"attn/rope/frequencies$", (None, "tensor", None)),
    (r"(mlp|tokens|channels)/(up|gate)/kernel$", (None, "tensor")),
    (r"(mlp|tokens|channels)/(up|gate)/bias$", ("tensor",)),
    (r"(mlp|tokens|channels)/down/kernel$", ("tensor", None)),
)
# Smaller arrays are replicated, since gathering them would cost more than their memory.
SMALLEST = 2**12
Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[jax.Device] | None = None, /, **axes: int) -> Mesh:
    """Return a mesh of all devices with named axes, such as data=-1 or data=4, fsdp=2; one size may be -1 for the rest.

    devices: used instead of this machine's devices, for example a TPU slice to compile for. Raises UserError if the
    sizes do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = {name: size for name, size in axes.items() if size is not None} or {"data": -1}
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1 and known > 0 and count % known == 0:
        sizes[free[0]] = count // known
    if any(size < 1 for size in sizes.values()) or int(np.prod(list(sizes.values()))) != count:
        raise UserError(
            f"mesh={axes} does not divide {count} devices; its sizes must multiply to {count}, one may be -1."
        )
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def platform() -> str:
    """Return the platform to compile for: of the current mesh, whose devices need not be local, or of this machine."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


_FOR_EVERY = contextvars.ContextVar("for every platform", default=False)


@contextlib.contextmanager
def every_platform() -> Iterator[None]:
    """Trace for all platforms at once, as for export: do not choose implementations that run on only one of them."""
    token = _FOR_EVERY.set(True)
    try:
        yield
    finally:
        _FOR_EVERY.reset(token)


def on_cpu(cpu: Callable[..., Tree], other: Callable[..., Tree], *arrays: jax.Array | None) -> Tree:
    """Return cpu(*arrays) if the program is compiled for CPUs, other(*arrays) on other platforms.

    Under `every_platform` the program contains both, and one is chosen when it is compiled.
    """
    if _FOR_EVERY.get():
        return jax.lax.platform_dependent(*arrays, cpu=cpu, default=other)
    return (cpu if platform() == "cpu" else other)(*arrays)


def for_every_platform() -> bool:
    """Return whether the program is traced under `every_platform`."""
    return _FOR_EVERY.get()


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Return the function with the mesh as JAX's current mesh while it is traced."""

    @functools.wraps(function)
    def with_mesh(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return with_mesh


def batch_sharded(x: jax.Array) -> jax.Array:
    """Return the array with its leading dimension constrained to be sharded over the batch axes of the current mesh.

    Otherwise the compiler may shard activations like the parameters, and communicate far more than the parameters' size.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def compiler_options(mesh: Mesh) -> dict[str, int] | None:
    """Return additional compiler options for a mesh.

    On TPUs with sharded parameters: gather each parameter whole. By default the compiler multiplies the activations
    with one shard after another, which hides the communication but reads the activations once per shard: 2.7 times the
    bytes in six blocks of L/16 on 8 chips.
    """
    if mesh.devices.flat[0].platform != "tpu" or mesh.shape.get("fsdp", 1) == 1:
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}


def everywhere(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the leading dimension over the batch axes."""
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(axes or None))


def batch_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape]))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError if the batch size is not a multiple of the number of shards."""
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % shards:
        nearest = max(shards, round(batch_size / shards) * shards)
        raise UserError(
            f"batch_size={batch_size} cannot be sharded over {shards} devices; use a multiple, such as {nearest}."
        )


def shared_size(batch_size: int, mesh: Mesh) -> int:
    """Return the next larger batch size that is a multiple of the shards."""
    return -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)


def local_shards(mesh: Mesh) -> list[int]:
    """Return the shards of a batch on this process's devices, in order; several processes may have the same shard."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_shards(mesh),)).values()
    return sorted({index[0].start or 0 for index in indices if index is not None})


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """Return this process's rows of a global batch whose size is a multiple of the shards."""
    size = batch_size // batch_shards(mesh)
    return tuple(shard * size + row for shard in local_shards(mesh) for row in range(size))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put this process's rows of a global batch, see `local_rows`, onto the devices."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return {key: jax.device_put(rows, sharding) for key, rows in batch.items()}
    shards = local_shards(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(shards)

        def part(index: Any) -> np.ndarray:
            at = shards.index((index[0].start or 0) // size) * size
            return rows[at : at + size]

        return jax.make_array_from_callback((size * batch_shards(mesh), *rows.shape[1:]), sharding, part)

    return {key: put(rows) for key, rows in batch.items()}


def bytes_on_device(shapes: Any, shardings: Any) -> float:
    """Return the bytes of the arrays of a tree on each device."""
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return float(sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in pairs))


def with_shardings(shapes: Tree, shardings: Any) -> Tree:
    """Return shapes with the sharding of each, or one sharding for all."""
    shardings = jax.tree.map(lambda _: shardings, shapes) if isinstance(shardings, NamedSharding) else shardings
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def tree_sharding(tree: Tree, mesh: Mesh | AbstractMesh, rules: Rules = ()) -> Tree:
    """Return the sharding of each leaf: from the first of `rules` whose regex matches its name, or the default.

    By default an array is sharded over "tensor" according to TENSOR_RULES, and over "fsdp" (arXiv:1910.02054, stage 3)
    along the longest remaining dimension that is divisible by the axis. The names of parameters, optimiser moments,
    averages and a task's copies end alike, so that one rule covers them all. Raises UserError if a rule does not fit
    the leaf or the mesh; a rule is ignored for moments and state that differ in shape from their parameter.
    """
    given = [(compile_regex(pattern, "config.sharding"), axes) for pattern, axes in rules]
    tensor = [(compile_regex(pattern, ""), axes) for pattern, axes in TENSOR_RULES if mesh.shape.get("tensor", 1) > 1]

    def sharding_of(name: str, leaf: Any) -> NamedSharding:
        for table, by_meaning in ((given, False), (tensor, True)):
            pattern, axes = next(((regex.pattern, axes) for regex, axes in table if regex.search(name)), ("", None))
            if axes is None:
                continue
            if _fits(leaf.shape, axes, mesh):
                return NamedSharding(mesh, PartitionSpec(*(_with_fsdp(leaf, axes, mesh) if by_meaning else axes)))
            if name.startswith(("opt_state/", "state/")):
                break  # the parameter itself raises if the rule does not fit it
            if by_meaning:
                raise UserError(
                    f"mesh.tensor={mesh.shape['tensor']} cannot divide {name} of shape {leaf.shape}; take a size that divides "
                    "the model's heads and hidden units, or mesh.fsdp."
                )
            raise UserError(
                f"The sharding rule {pattern!r}: {tuple(axes)} does not fit {name} of shape {leaf.shape} on the mesh "
                f"{dict(mesh.shape)}; name one axis or None per dimension that divides it, each axis once."
            )
        return NamedSharding(mesh, PartitionSpec(*_with_fsdp(leaf, (None,) * leaf.ndim, mesh)))

    return trees.map_named(sharding_of, tree)


def _fits(shape: tuple[int, ...], axes: Sequence[str | None], mesh: Mesh | AbstractMesh) -> bool:
    used = [axis for axis in axes if axis]
    return (
        len(axes) == len(shape)
        and len(used) == len(set(used))
        and all(
            axis in mesh.shape and not dim % mesh.shape[axis] for dim, axis in zip(shape, axes, strict=True) if axis
        )
    )


def _with_fsdp(leaf: Any, axes: Sequence[str | None], mesh: Mesh | AbstractMesh) -> Sequence[str | None]:
    """Return the axes, with "fsdp" on the longest free dimension that it divides, if any."""
    size = mesh.shape.get("fsdp", 1)
    free = [i for i, (dim, axis) in enumerate(zip(leaf.shape, axes, strict=True)) if not axis and not dim % size]
    if size == 1 or leaf.size < SMALLEST or not free:
        return axes if any(axes) else ()
    longest = max(free, key=lambda i: leaf.shape[i])
    return [*axes[:longest], "fsdp", *axes[longest + 1 :]]
