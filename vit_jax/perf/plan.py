"""Plan a training step on absent accelerators: memory, operations, traffic, and a lower bound of the time."""

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
from vit_jax.config.factory import near
from vit_jax.data.pipeline import DataSpec
from vit_jax.perf.hlo import HloModule, Traffic, planned_memory
from vit_jax.train.build import build_parts
from vit_jax.train.step import jit_step
from vit_jax.types import UserError

# The compiler's message for a program that does not fit.
EXHAUSTED = re.compile(r"(?:HLO temporaries \(|Used )([\d.]+)([KMG])")
# Compile on a machine without TPUs, without claiming a chip or querying hosts.
NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any value; the topology decides
}
# TPU generations and the number of dimensions of their slices.
GENERATIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The cost of one compiled step per device, in bytes, operations and seconds.

    temporaries: activations, gradients and everything else that exists only during the step. peak: the most bytes at
    once. accessed: bytes of all inputs and outputs by XLA's count, in any memory; moved: bytes in main memory, see
    HloModule.memory_traffic. kernels: calls that neither of the two can see into. model_flops: of the plain model,
    without recomputation. If the compiler rejects a step for its memory, it has a peak, but moved is None. The times
    follow from the chip's peak rates, and are None if the chip is unknown.
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
        """Seconds for operations, for memory traffic, and for communication with other chips."""
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
        """The rate over all devices if the three overlap perfectly, limited by the slowest."""
        return None if self.times is None else self.batch_size / max(self.times.values())


def devices_of(topology: str) -> list[Any]:
    """Return the devices of a TPU slice like "v5e:4x8" to compile for; raises UserError without libtpu or the slice."""
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
        raise UserError(f"Compiling for {topology} needs Google's compiler, but no TPU: pip install libtpu.")
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    # Programs for absent devices can be cached, but not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"--topology={topology} cannot be compiled for ({reason}); try such as v5e:4x8.") from None


def plan(config: Mapping[str, Any], spec: DataSpec, devices: Sequence[Any]) -> StepPlan:
    """Compile the train step of a filled-in config for these devices; raises UserError if mesh or batch do not fit."""
    mesh = sharding.make_mesh(devices, **config["mesh"])
    sharding.check_batch(config["batch_size"], mesh)
    parts = build_parts(config, spec)
    shapes, shardings = parts.shapes, parts.shardings(mesh)
    constants = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parts.constants)
    # Kernels hide their operations, so FLOPs are counted on the same step with plain attention.
    counted = config if config["model"].get("type") != "vit.ViT" else with_changes(config, {"model.attention": "plain"})
    total, _ = flops.count(build_parts(counted, spec).make_step(), constants, shapes, parts.batch)
    chip = chip_of(devices)
    optimizer = sharding.bytes_on_device(shapes.opt_state, shardings.opt_state)
    rest = [(tree.params, tree.ema, tree.frozen, tree.state) for tree in (shapes, shardings)]
    begin = time.perf_counter()
    lowered = jit_step(parts.make_step(), constants, mesh, shardings, parts.rules).lower(constants, shapes, parts.batch)
    made = program_facts(lowered, len(devices), chip is not None)
    return StepPlan(
        devices=len(devices),
        chip=chip,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1} or {"data": 1},
        batch_size=config["batch_size"],
        params=sharding.bytes_on_device(*rest),
        optimizer=optimizer,
        flops=total / len(devices),
        model_flops=parts.model_flops()[0] / len(devices),
        compile_seconds=time.perf_counter() - begin,
        **made,
    )


def program_facts(lowered: Any, devices: int, accelerator: bool) -> dict[str, Any]:
    """Return StepPlan fields from a program compiled for this many devices, or from its out-of-memory error."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = EXHAUSTED.search(str(error))
        if needed is None:
            raise
        size = float(needed[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30}[needed[2]]
        return {"temporaries": size, "peak": size, "accessed": None, "moved": None, "kernels": 0, "traffic": ()}
    read, memory = HloModule(program.as_text()), program.memory_analysis()
    read.memory_traffic()
    return {
        "temporaries": float(memory.temp_size_in_bytes),
        # Compilers for accelerators count memory shared by buffers once.
        "peak": float(memory.peak_memory_in_bytes if accelerator else planned_memory(program) or 0),
        # XLA counts the body of a loop once.
        "accessed": program.cost_analysis().get("bytes accessed", math.nan)
        * read.memory_traffic()
        / read.memory_traffic(loops=False),
        "moved": read.memory_traffic(),
        "kernels": read.kernels(),
        "traffic": read.collectives(devices),
    }


# Changes that make a step smaller, cheapest first: (description, config keys).
REMEDIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("parameters and optimiser sharded over the devices", {"mesh.data": 1, "mesh.fsdp": -1}),
    ("activations recomputed", {"model.remat": "inner"}),
    ("more activations recomputed", {"model.remat": "full"}),
    ("the batch in 2 parts", {"grad": {"type": "accumulate.Accumulate", "microbatches": 2}}),
    ("the batch in 4 parts", {"grad": {"type": "accumulate.Accumulate", "microbatches": 4}}),
    ("the batch in 8 parts", {"grad": {"type": "accumulate.Accumulate", "microbatches": 8}}),
)


def with_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with changed values of keys such as "model.remat"."""
    changed = dict(config)
    for key, value in changes.items():
        part, _, field = key.partition(".")
        changed[part] = {**changed[part], field: value} if field else value
    return changed


def remedies(one: StepPlan, config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the changes to try if a plan does not fit, each including the previous ones."""
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
