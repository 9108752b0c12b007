"""Time the step fed by its data against the bare step: vit bench --config=FILE.py[:ARG] [--steps=60] [--rounds=5] [--json]."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax.cli.command import Parser, split_overrides
from vit_jax.types import UserError


def main(argv: Sequence[str]) -> int:
    """Prints steps per second of both, in turns in one process, and the median of their ratios."""
    overrides, rest = split_overrides(argv)
    parser = Parser(prog="vit bench", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="a file with get_config()")
    parser.add_argument("--config.KEY", metavar="VALUE", help="another value for a key of the config")
    parser.add_argument("--steps", type=int, default=60, help="steps of each in a round; default 60")
    parser.add_argument("--rounds", type=int, default=5, help="how often both are timed; default 5")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse(rest)
    if flags.steps < 1 or flags.rounds < 1:
        raise UserError(f"--steps={flags.steps} and --rounds={flags.rounds} must be at least 1.")

    from vit_jax.config_file import load

    config = load(flags.config, overrides)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(config.to_dict(), Path(folder) / "run", flags.steps, flags.rounds)
    if flags.json:
        print(json.dumps(result))
    else:
        print(
            f"bare step {result['bare_steps_per_second']:.2f} steps/s, loop with data {result['loop_steps_per_second']:.2f} "
            f"steps/s, ratio {result['ratio']:.3f}; waiting for data {result['data_wait']:.1%} of the time"
        )
    return 0


def measure(config: dict[str, Any], path: Path, steps: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds; the bare step takes one batch that lies on the device. Each step is awaited in both."""
    import jax

    from vit_jax import sharding
    from vit_jax.train.run import compose

    length = (steps + 1) * rounds + 1
    run = compose(config | {"steps": max(config.get("steps") or 0, length), "epochs": None}, path)
    state = jax.jit(run.init, out_shardings=run.places)(None)
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
