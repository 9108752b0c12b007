"""The bare train step: what it takes to begin, its memory, and how fast it goes on a batch that lies on the devices."""

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
from vit_jax.tasks.task import Task
from vit_jax.train.state import State
from vit_jax.train.step import jit_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function, the seconds to trace and to compile it, and the bytes that it needs on each device.

    cached: it was found in the compilation cache. memory is the compiler's plan; None where it tells none.
    """

    run: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    cached: bool
    memory: int | None


def compile_program(jitted: Any, *shapes: Any) -> Program:
    """A jitted function compiled for arguments of these shapes and places."""
    begin, hits = time.perf_counter(), _cache_hits()
    lowered = jitted.trace(*shapes).lower()
    traced, before = time.perf_counter(), len(hits)
    compiled = lowered.compile()
    done = time.perf_counter()
    return Program(compiled, traced - begin, done - traced, len(hits) > before, planned_memory(compiled))


@functools.cache
def _cache_hits() -> list[str]:
    """A list that grows by one whenever a program is found in the compilation cache."""
    hits: list[str] = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event == "/jax/compilation_cache/cache_hits" else None
    )
    return hits


class Training:
    """A train step with its state and one batch; called with a number of steps, it gives their seconds.

    step: (state, batch) -> (state, metrics). first_seconds is the time of the first step, which is taken here.
    """

    def __init__(self, step: Callable[..., Any], state: State, batch: Mapping[str, jax.Array]):
        self._step, self._state, self._batch = step, state, batch
        # XLA:CPU aborts in a rendezvous when several steps are under way on several devices.
        self._await_each = jax.default_backend() == "cpu"
        self.first_seconds = self(1)

    def __call__(self, steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch)
            if self._await_each:
                jax.block_until_ready(metrics)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - begin


def compile_training(
    make: Callable[..., Any],
    init: Callable[[None], State],
    task: Task,
    mesh: Mesh,
    batch: Mapping[str, jax.Array],
    rules: sharding.Rules = (),
) -> tuple[Program, Training]:
    """The step that `make()` gives, compiled for a batch and the state that init(None) gives, and taken once."""
    shapes = jax.eval_shape(init, None)
    places = sharding.tree_sharding(shapes, mesh, rules)
    constants = jax.device_put(task.constants, sharding.tree_sharding(task.constants, mesh, rules))
    jitted = jit_step(make, task.constants, mesh, places, rules)
    program = compile_program(jitted, constants, sharding.placed(shapes, places), batch)
    state = jax.jit(init, out_shardings=places)(None)
    return program, Training(functools.partial(program.run, constants), state, batch)


def random_batch(shapes: Mapping[str, jax.ShapeDtypeStruct], num_classes: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Random bytes for images and random labels of a global batch, divided over the devices."""
    rng, rows = np.random.default_rng(0), len(sharding.local_rows(mesh, shapes["image"].shape[0]))
    highest = {"image": 256, "label": 2 if shapes["label"].ndim > 1 else num_classes}
    batch = {
        key: rng.integers(0, highest[key], (rows, *x.shape[1:]), np.int64).astype(x.dtype) for key, x in shapes.items()
    }
    return sharding.put_batch(batch, mesh)


def figures(seconds: Sequence[float], batch_size: int, step_flops: float, devices: Sequence[Any]) -> dict[str, Any]:
    """What the seconds of a step in each round say: medians; `mfu` is None where the peak of these devices is not known."""
    one, chip = statistics.median(seconds), chip_of(devices)
    return {
        "images_per_second": batch_size / one,
        "ms_per_step": 1e3 * one,
        "flops_per_step": step_flops,
        "tflops_per_second": step_flops / one / 1e12,
        "mfu": None if chip is None else step_flops / one / len(devices) / chip.flops,
    }


def peak_memory(devices: Sequence[Any]) -> int | None:
    """The most bytes that one of the devices has held since this process began; None where they do not tell."""
    stats = [device.memory_stats() or {} for device in devices]
    return max((found.get("peak_bytes_in_use", 0) for found in stats), default=0) or None
