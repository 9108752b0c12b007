"""What a training step takes on accelerators that need not be here: memory, operations, traffic, and the time these allow."""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from vit_jax import flops, sharding
from vit_jax.chips import Chip, chip_of
from vit_jax.config.factory import build, near
from vit_jax.data.pipeline import Spec
from vit_jax.perf.hlo import HloModule, Traffic, planned_memory
from vit_jax.train.cost import model_flops
from vit_jax.train.run import batch_shapes, build_parts
from vit_jax.train.state import State
from vit_jax.train.step import jit_step
from vit_jax.types import UserError

# What the compiler says where a program does not fit.
EXHAUSTED = re.compile(r"(?:HLO temporaries \(|Used )([\d.]+)([KMG])")
# For the compiler of a machine without TPU, which asks for no chip that another process may hold, and says nothing of hosts.
NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any; the topology decides
}
# Generations of TPUs and the dimensions of their slices.
GENERATIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one compiled step takes on each device; bytes, operations and seconds of a step.

    temporaries are activations, gradients and what else is there only during the step; peak is the most that is there at once.
    accessed are the bytes of all inputs and outputs as XLA counts them, wherever they lie, and moved those in main memory (see
    Program.moved); kernels are calls whose inside neither sees. model_flops are those of the plain model, without what is
    computed again. A step that the compiler refuses for its memory has a peak, and None for what is moved. The times are what
    the chip's paper figures allow at best, and None where the chip is not known.
    """

    devices: int
    chip: Chip | None
    mesh: Mapping[str, int]
    batch_size: int
    params: float
    optimizer: float
    temporaries: float
    peak: float
    flops: float
    model_flops: float
    accessed: float | None
    moved: float | None
    kernels: int
    traffic: Sequence[Traffic]
    compile_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the chip's memory."""
        return None if self.chip is None else self.peak <= self.chip.memory

    @property
    def times(self) -> dict[str, float] | None:
        """Seconds for the operations, for moving bytes from memory, and for the exchange with other chips."""
        if self.chip is None or self.moved is None:
            return None
        sent = math.fsum(one.sent for one in self.traffic)
        return {
            "compute": self.flops / self.chip.flops,
            "memory": self.moved / self.chip.bandwidth,
            "exchange": sent / self.chip.links,
        }

    @property
    def images_per_second(self) -> float | None:
        """What the slowest of the three allows, over all devices, if they overlap perfectly."""
        return None if self.times is None else self.batch_size / max(self.times.values())


def devices_of(topology: str) -> list[Any]:
    """The devices of a TPU slice such as "v5e:4x8", to compile for; UserError where libtpu or the slice is unknown."""
    generation, _, chips = topology.partition(":")
    sides = chips.split("x")
    if generation not in GENERATIONS or not all(side.isdecimal() for side in sides):
        hint = near(generation, GENERATIONS)
        raise UserError(
            f"--topology={topology}: expected a generation and the sides of the slice, as v5e:4x8 for v5litepod-32{hint}"
        )
    if len(sides) != GENERATIONS[generation]:
        raise UserError(
            f"--topology={topology}: slices of {generation} have {GENERATIONS[generation]} sides, not {len(sides)}."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"To compile for {topology} takes Google's compiler, which needs no TPU: pip install libtpu.")
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    # What is compiled for devices that are not here can be kept, but not read again.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"--topology={topology} cannot be compiled for ({reason}); try such as v5e:4x8.") from None


def plan(config: Mapping[str, Any], spec: Spec, steps: int, devices: Sequence[Any]) -> Plan:
    """Compiles the train step of a settled config for these devices; raises UserError where mesh or batch do not fit them."""
    mesh = sharding.make_mesh(devices, **config["mesh"])
    sharding.check_batch(config["batch_size"], mesh)
    task, init, make = build_parts(config, spec, steps)
    rules = config["sharding"] or ()
    shapes, batch = jax.eval_shape(init, None), batch_shapes(spec, config["batch_size"])
    places = sharding.tree_sharding(shapes, mesh, rules)
    constants = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), task.constants)
    # Kernels hide theirs, so the same step is counted with plain attention.
    counted = config if config["model"].get("type") != "vit.ViT" else with_changes(config, {"model.attention": "plain"})
    total, _ = flops.count(build_parts(counted, spec, steps)[2](), constants, shapes, batch)
    chip = chip_of(devices)
    held_params = held(State(0, shapes.params, 0, shapes.ema, shapes.frozen), places)
    held_optimizer = held(State(0, 0, shapes.opt_state, None, {}), places)
    begin = time.perf_counter()
    made = compiled(
        jit_step(make, constants, mesh, places, rules).lower(constants, shapes, batch), len(devices), chip is not None
    )
    return Plan(
        devices=len(devices),
        chip=chip,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1} or {"data": 1},
        batch_size=config["batch_size"],
        params=held_params,
        optimizer=held_optimizer,
        flops=total / len(devices),
        model_flops=model_flops(task, build(config["grad"], "grad"), shapes, batch)[0] / len(devices),
        compile_seconds=time.perf_counter() - begin,
        **made,
    )


def compiled(lowered: Any, devices: int, accelerator: bool) -> dict[str, Any]:
    """What a program compiled for so many devices says of itself, or why it was not compiled, as fields of a Plan."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = EXHAUSTED.search(str(error))
        if needed is None:
            raise
        size = float(needed[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30}[needed[2]]
        return {"temporaries": size, "peak": size, "accessed": None, "moved": None, "kernels": 0, "traffic": ()}
    read, memory = HloModule(program.as_text()), program.memory_analysis()
    return {
        "temporaries": float(memory.temp_size_in_bytes),
        # The figure of accelerators' compilers shares what is not alive at once.
        "peak": float(memory.peak_memory_in_bytes if accelerator else planned_memory(program) or 0),
        # XLA counts the body of a loop once.
        "accessed": program.cost_analysis().get("bytes accessed", math.nan)
        * read.memory_traffic()
        / read.memory_traffic(loops=False),
        "moved": read.memory_traffic(),
        "kernels": read.kernels(),
        "traffic": read.collectives(devices),
    }


def held(shapes: State, places: State) -> float:
    """The bytes of the arrays of a part of the state on each device; other parts are numbers or empty."""
    sizes = [math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in _pairs(shapes, places)]
    return float(sum(sizes))


def _pairs(shapes: State, places: State) -> list[tuple[Any, Any]]:
    pairs = []
    for part in ("params", "opt_state", "ema", "frozen"):
        if not isinstance(getattr(shapes, part), int):
            leaves = jax.tree.leaves(getattr(shapes, part)), jax.tree.leaves(getattr(places, part))
            pairs += list(zip(*leaves, strict=True)) if leaves[0] else []
    return pairs


# Changes that make a step smaller, the cheapest first: (what it is, config keys).
REMEDIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("parameters and optimiser divided over the devices", {"mesh.data": 1, "mesh.fsdp": -1}),
    ("activations computed again", {"model.remat": "inner"}),
    ("more activations computed again", {"model.remat": "full"}),
    ("the batch in 2 parts", {"grad": {"type": "accumulate.Accumulate", "microbatches": 2}}),
    ("the batch in 4 parts", {"grad": {"type": "accumulate.Accumulate", "microbatches": 4}}),
    ("the batch in 8 parts", {"grad": {"type": "accumulate.Accumulate", "microbatches": 8}}),
)


def with_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values of keys such as "model.remat"."""
    changed = dict(config)
    for key, value in changes.items():
        part, _, field = key.partition(".")
        changed[part] = {**changed[part], field: value} if field else value
    return changed


def remedies(one: Plan, config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The changes to try, each on top of those before it, where a plan does not fit."""
    left = list(REMEDIES)
    if one.mesh.get("fsdp", 1) > 1 or one.devices == 1 or one.params + one.optimizer < 0.1 * one.peak:
        left.pop(0)
    done = config["model"].get("remat") or "none"
    left = [(what, changes) for what, changes in left if not (done == "full" and "model.remat" in changes)]
    shards = math.prod(size for axis, size in one.mesh.items() if axis in sharding.BATCH_AXES)
    tried: dict[str, Any] = {}
    found = []
    for what, changes in left:
        parts = changes.get("grad", {}).get("microbatches", 1)
        if config["batch_size"] % (parts * shards) == 0:
            tried = tried | changes
            found.append((what, dict(tried)))
    return found
