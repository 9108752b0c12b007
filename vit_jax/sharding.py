"""Device meshes, and where each array of the batch and of the state lives on them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax import trees
from vit_jax.types import UserError, compile_regex

# The batch is divided over these axes of the mesh, where it has them.
BATCH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, Sequence[str | None]]]
Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[jax.Device] | None = None, /, **axes: int) -> Mesh:
    """A mesh of all devices with named axes, such as data=-1 or data=4, fsdp=2; one size may be -1 for what is left.

    `devices` are others than this machine's, such as those of a TPU slice that is only compiled for. Raises UserError where the
    sizes do not multiply to their number.
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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension divided over the batch axes."""
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(axes or None))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is divided."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape]))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where the devices cannot share a batch evenly."""
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % shards:
        nearest = max(shards, round(batch_size / shards) * shards)
        raise UserError(
            f"batch_size={batch_size} cannot be shared by {shards} devices; use a multiple, such as {nearest}."
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch onto the devices."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()}


def tree_sharding(tree: Tree, mesh: Mesh, rules: Rules = ()) -> Tree:
    """The sharding of each leaf: the first rule whose regex is found in its name, or a copy on every device.

    A rule gives a mesh axis or None for each dimension. Parameters, optimiser moments and their averages share the end of
    their names, so one rule covers them all; moments of another shape than their parameter's are copied. Raises UserError
    where a rule does not fit the leaf or the mesh.
    """
    compiled = [(compile_regex(pattern, "config.sharding"), axes) for pattern, axes in rules]

    def place(name: str, leaf: Any) -> NamedSharding:
        for regex, axes in compiled:
            if regex.search(name):
                sizes = [mesh.shape.get(axis, 0) if axis else 1 for axis in axes]
                used = [axis for axis in axes if axis]
                if (
                    len(sizes) != leaf.ndim
                    or len(used) != len(set(used))
                    or any(not size or dim % size for dim, size in zip(leaf.shape, sizes, strict=True))
                ):
                    if name.startswith("opt_state/"):
                        break  # a moment smaller than its parameter, for which the rule is refused where it does not fit
                    raise UserError(
                        f"The sharding rule {regex.pattern!r}: {tuple(axes)} does not fit {name} of shape {leaf.shape} "
                        f"on the mesh {dict(mesh.shape)}; name one axis or None per dimension that divides it, each axis once."
                    )
                return NamedSharding(mesh, PartitionSpec(*axes))
        return NamedSharding(mesh, PartitionSpec())

    return trees.map_named(place, tree)
