"""Time the bare train step: its start-up time, memory, and speed on a batch that stays on the devices."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.chips import chip_of
from vit_jax.perf.hlo import planned_memory
from vit_jax.train.parts import Parts
from vit_jax.train.state import State
from vit_jax.train.step import jit_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function, the seconds to trace and to compile it, and the bytes that it needs on each device.

    cached: it came from the compilation cache. memory: planned by the compiler; None if unknown.
    """

    run: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    cached: bool
    memory: int | None


def compile_program(jitted: Any, *shapes: Any) -> Program:
    """Compile a jitted function for arguments of these shapes and shardings."""
    begin, hits = time.perf_counter(), _cache_hits()
    lowered = jitted.trace(*shapes).lower()
    traced, before = time.perf_counter(), len(hits)
    compiled = lowered.compile()
    done = time.perf_counter()
    return Program(compiled, traced - begin, done - traced, len(hits) > before, planned_memory(compiled))


@functools.cache
def _cache_hits() -> list[str]:
    """Return a list that grows by one on each compilation cache hit."""
    hits: list[str] = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event == "/jax/compilation_cache/cache_hits" else None
    )
    return hits


class Training:
    """A train step with its state and one batch; called with a number of steps, it returns their seconds.

    step: (state, batch) -> (state, metrics). first_seconds: for the first step, which runs here.
    """

    def __init__(self, step: Callable[..., Any], state: State, batch: Mapping[str, jax.Array]):
        self._step, self._state, self._batch = step, state, batch
        # XLA:CPU aborts in a rendezvous if several steps are in flight on several devices.
        self._block_each = jax.default_backend() == "cpu"
        self.first_seconds = self(1)

    def __call__(self, steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch)
            if self._block_each:
                jax.block_until_ready(metrics)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - begin


def compile_training(parts: Parts, mesh: Mesh, batch: Mapping[str, jax.Array]) -> tuple[Program, Training]:
    """Compile the step for a batch and the initial state, and run it once."""
    shapes, shardings = parts.shapes, parts.shardings(mesh)
    constants = jax.device_put(parts.constants, sharding.tree_sharding(parts.constants, mesh, parts.rules))
    jitted = jit_step(parts.make_step(), parts.constants, mesh, shardings, parts.rules)
    program = compile_program(jitted, constants, sharding.with_shardings(shapes, shardings), batch)
    state = jax.jit(parts.init, out_shardings=shardings)(None)
    return program, Training(functools.partial(program.run, constants), state, batch)


def random_batch(shapes: Mapping[str, jax.ShapeDtypeStruct], num_classes: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Return a global sharded batch of random bytes, labels below num_classes, and zeros or ones for floats."""
    rng, rows = np.random.default_rng(0), len(sharding.local_rows(mesh, next(iter(shapes.values())).shape[0]))

    def random(x: jax.ShapeDtypeStruct) -> np.ndarray:
        highest = 256 if x.dtype == np.uint8 else 2 if x.dtype.kind in "fb" else max(num_classes, 1)
        return rng.integers(0, highest, (rows, *x.shape[1:]), np.int64).astype(x.dtype)

    return sharding.put_batch({key: random(x) for key, x in shapes.items()}, mesh)


def figures(seconds: Sequence[float], batch_size: int, step_flops: float, devices: Sequence[Any]) -> dict[str, Any]:
    """Return median results from the seconds per step of each round; `mfu` is None if the devices' peak is unknown."""
    one, chip = statistics.median(seconds), chip_of(devices)
    return {
        "images_per_second": batch_size / one,
        "ms_per_step": 1e3 * one,
        "flops_per_step": step_flops,
        "tflops_per_second": step_flops / one / 1e12,
        "mfu": None if chip is None else step_flops / one / len(devices) / chip.flops,
    }


def peak_memory(devices: Sequence[Any]) -> int | None:
    """Return the peak bytes on any of the devices since this process started; None if unknown."""
    stats = [device.memory_stats() or {} for device in devices]
    return max((found.get("peak_bytes_in_use", 0) for found in stats), default=0) or None
