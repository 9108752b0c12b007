"""Measure speed: vit bench step|loop|data|inference --config=FILE.py[:ARG] [--config.KEY=VALUE ...] [--json]."""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vit_jax.cli.command import Parser, number_flag, numbers_flag, path_flag, split_overrides
from vit_jax.types import BatchSize, Count, Steps, Units, UserError

# Steps in a round.
STEPS = {"step": 20, "loop": 60, "data": 20, "inference": 20}
PROFILED = 5  # steps in a trace
# What each kind measures.
KINDS = {
    "step": "the bare train step on random bytes on the device, without data",
    "loop": "the step with its data against the bare step",
    "data": "the batches, without training",
    "inference": "predictions with random weights, from bytes on the host to probabilities there",
}

EXAMPLES = """
vit bench step --config=configs/vit_s16_i1k.py --batch_size=8 --peer=timm
vit bench loop --config=configs/digits.py
vit bench data --config=configs/cifar10.py:folder:PATH --counts=1,2
vit bench inference --config=configs/vit_s16_i1k.py --batch_size=1,8,64
"""


def main(argv: Sequence[str]) -> int:
    """Print medians over the rounds, in which all sides of a comparison are timed in turns."""
    overrides, rest = split_overrides(argv)
    what = next((word for word in rest[:1] if word in STEPS), "")
    flags = make_parser(what).parse(rest)
    if not what:
        raise UserError(f"Found {flags.what} after other words; put it first: vit bench {flags.what} ...")
    if flags.steps is None:
        flags.steps = STEPS[what]
    if what != "inference" and flags.batch_size is not None:
        overrides.append(("batch_size", str(flags.batch_size)))
    if getattr(flags, "peer", None):
        from vit_jax.perf.peer import function_of

        function_of(flags.peer)
        # The peer needs memory of the same GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from vit_jax.config.load import load

    config = load(flags.config, overrides).to_dict()
    measure: dict[str, Callable[..., dict[str, Any]]] = {
        "step": bench_step,
        "loop": bench_loop,
        "data": bench_data,
        "inference": bench_inference,
    }
    result = measure[what](config, flags)
    lines = result.pop("lines")
    print(json.dumps(result) if flags.json else "\n".join(lines))
    return 0


def make_parser(what: str) -> Parser:
    """Return the flags of one measurement, or the shared flags if it is unknown."""
    kinds = "\n".join(f"{kind}: {text}" for kind, text in KINDS.items())
    parser = Parser(
        prog=f"vit bench {what}".strip(),
        usage=f"vit bench {what} --config=FILE.py[:ARG] [flags]" if what else None,
        description=f"Measure {KINDS[what]}." if what else f"{__doc__}\n\n{kinds}",
        examples="\n".join(line for line in EXAMPLES.splitlines() if f"bench {what}" in line),
    )
    what_help = argparse.SUPPRESS if what else "what to measure; --help after it lists all of its flags"
    parser.add_argument("what", choices=STEPS, help=what_help)
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="a file with get_config()")
    parser.add_argument("--config.KEY", metavar="VALUE", help="another value for a key of the config")
    if what == "inference":
        sizes = numbers_flag(BatchSize)
        parser.add_argument(
            "--batch_size", type=sizes, metavar="N,...", default="1,8,64", help="batch sizes; default 1,8,64"
        )
    else:
        parser.add_argument(
            "--batch_size", type=number_flag(BatchSize), metavar="N", help="batch size; default the config's"
        )
    default = f"; default {STEPS[what]}" if what else ""
    parser.add_argument("--steps", type=number_flag(Steps), help=f"steps of each in a round{default}")
    parser.add_argument("--rounds", type=number_flag(Count), default=5, help="number of rounds; default 5")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if what == "data":
        parser.add_argument(
            "--counts",
            type=numbers_flag(Count),
            default="1,2",
            metavar="N,...",
            help="numbers of threads, and of workers; default 1,2",
        )
    if what in ("step", "inference"):
        parser.add_argument("--peer", metavar="PEER", help="timm, timm:compile or MODULE:FUNCTION, see perf/peer.py")
        parser.add_argument(
            "--peer_dtype", choices=("float32", "bfloat16"), help="the peer's dtype; default the model's"
        )
        parser.add_argument("--num_classes", type=number_flag(Units), help="classes, if the data set is not here")
        parser.add_argument(
            "--profile",
            type=path_flag,
            metavar="DIR",
            help="write a trace of some steps there, for TensorBoard or xprof",
        )
    if what == "inference":
        parser.add_argument("--dtypes", metavar="DTYPE,...", help="dtypes of the model; default the config's")
    return parser


def bench_loop(config: dict[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """See KINDS."""
    from vit_jax.perf.loop import measure_loop

    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = measure_loop(config, Path(folder) / "run", flags.steps, flags.rounds)
    line = (
        f"bare step {result['bare_steps_per_second']:.2f} steps/s, loop with data {result['loop_steps_per_second']:.2f} "
        f"steps/s, ratio {result['ratio']:.3f}; waiting for data {result['data_wait']:.1%} of the time"
    )
    return result | {"lines": [line]}


def bench_data(config: dict[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """See KINDS."""
    from vit_jax.perf.loop import measure_data

    rows = measure_data(config, flags.counts, flags.steps, flags.rounds)
    lines = [
        f"{row['count']} {row['kind']}: {row['images_per_second']:.1f} images/s, {row['scaling']:.2f} of the first's"
        for row in rows
    ]
    return {"rows": rows, "lines": lines}


def bench_step(config: dict[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """See KINDS."""
    from vit_jax.perf.composed import Composed, step_figures
    from vit_jax.perf.turns import in_turns

    composed = Composed(config, flags.num_classes)
    with contextlib.ExitStack() as stack:
        # Before ours is compiled, so that they do not disturb each other.
        peer = stack.enter_context(composed.peer(flags.peer, flags.peer_dtype)) if flags.peer else None
        training = composed.training()
        seconds = in_turns({"ours": training} | ({"peer": peer} if peer else {}), flags.steps, flags.rounds)
        profile(flags.profile, training)
        return step_figures(composed, training, peer, seconds)


def bench_inference(config: dict[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """See KINDS."""
    from vit_jax.perf.composed import Composed
    from vit_jax.perf.prediction import measure_prediction

    rows = []
    for dtype in flags.dtypes.split(",") if flags.dtypes else [None]:
        model = config["model"] | ({} if dtype is None else {"dtype": dtype})
        composed = Composed(config | {"model": model}, flags.num_classes)
        for size in flags.batch_size:
            with contextlib.ExitStack() as stack:
                peer = None
                if flags.peer:
                    peer = stack.enter_context(composed.peer(flags.peer, flags.peer_dtype, predictions=size))
                ours = composed.prediction(size)
                row = measure_prediction(ours, peer, size, flags.steps, flags.rounds)
                rows.append({"dtype": composed.dtype} | row | ({"peer": peer.about} if peer else {}))
                profile(flags.profile, ours)
    lines = []
    for row in rows:
        line = (
            f"{row['dtype']}, {row['batch_size']:>4} at once: {row['images_per_second']:.1f} images/s, latency "
            f"{row['latency_p50_ms']:.1f} ms (p95 {row['latency_p95_ms']:.1f})"
        )
        if "of_peer" in row:
            line += (
                f"; {row['of_peer']:.2f} times as fast as {row['peer']}, {row['peer_images_per_second']:.1f} images/s"
            )
        lines.append(line)
    return {"rows": rows, "lines": lines}


def profile(folder: str | None, side: Callable[[int], float]) -> None:
    """Write a trace of some steps into a folder, if one is named."""
    if folder is None:
        return
    import jax

    with jax.profiler.trace(folder):
        side(PROFILED)
