"""Time the step with its data against the bare step, and the data by itself."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from vit_jax import sharding
from vit_jax.config import factory
from vit_jax.data.pipeline import TrainData
from vit_jax.perf import input_speed as speed
from vit_jax.perf.stand_in import stand_in_config
from vit_jax.train.build import build, build_data


def measure_loop(config: dict[str, Any], path: Path, steps: int, rounds: int) -> dict[str, float]:
    """Return medians over the rounds; the bare step reuses one batch. Both block until each step is ready."""
    length = (steps + 1) * rounds + 1
    run = build(config | {"steps": max(config.get("steps") or 0, length), "epochs": None}, path)
    state = jax.jit(run.parts.init, out_shardings=run.shardings)(None)
    batches = run.data.from_step(0, length)
    resident = sharding.put_batch(next(batches)[1], run.mesh)
    state, metrics = run.train_step(state, resident)
    jax.block_until_ready(metrics)

    bare, loop, wait = [], [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = run.train_step(state, resident)
            jax.block_until_ready(metrics)
        bare.append(steps / (time.perf_counter() - begin))
        begin, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            _, batch = next(batches)
            waited += time.perf_counter() - asked
            state, metrics = run.train_step(state, sharding.put_batch(batch, run.mesh))
            jax.block_until_ready(metrics)
        loop.append(steps / (time.perf_counter() - begin))
        wait.append(waited * loop[-1] / steps)
    batches.close()
    return {
        "bare_steps_per_second": statistics.median(bare),
        "loop_steps_per_second": statistics.median(loop),
        "ratio": statistics.median(a / b for a, b in zip(loop, bare, strict=True)),
        "data_wait": statistics.median(wait),
    }


def measure_data(config: dict[str, Any], counts: Sequence[int], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Measure only the batches, for numbers of threads and of worker processes; see input_speed.py."""
    config = stand_in_config(config).config
    source = factory.build(config["data"]["source"], "data.source")

    def open_data(threads: int, workers: int) -> TrainData:
        data = config["data"] | {"threads": threads, "workers": workers, "resident": False}
        return build_data({**config, "data": data}, source)

    return speed.measure(open_data, counts, steps, rounds)
