"""Run many settings: vit sweep experiments/X/sweep.py[:ARG] --out=DIR [--jobs=N] [--config.KEY=VALUE ...] [--dry-run].

get_sweep() in the file returns the runs as data; see vit_jax/runs/sweeps/space.py. DIR/NAME is the workdir of a run and
DIR/NAME.log its output. The same command again resumes unfinished runs, however the sweep ended.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vit_jax.cli.command import Parser, number_flag, path_flag, split_overrides
from vit_jax.types import Between, Count, Threads, UserError

if TYPE_CHECKING:
    from vit_jax.runs.sweeps.executor import Executor
    from vit_jax.runs.sweeps.record import SweepRecord

EXAMPLES = """
vit sweep experiments/digits_sweep_202611/sweep.py --out=workdirs/digits_sweep --jobs=2
vit sweep sweep.py --out=workdirs/lr --dry-run
"""


def main(argv: Sequence[str]) -> int:
    """Run the sweep; return 0 if every run is finished, 1 if some failed, 130 or 143 after Ctrl-C or SIGTERM."""
    overrides, rest = split_overrides(argv)
    flags = make_parser().parse(rest)
    ray_flags = [name for name in ("address", "cpus", "gpus", "tpus") if getattr(flags, name) is not None]
    if flags.executor != "ray" and ray_flags:
        raise UserError(f"--{ray_flags[0]} is for a cluster; add --executor=ray, or use --jobs for this machine.")
    if "://" in flags.out:
        raise UserError(f"--out={flags.out}: expected a local folder, or one that all machines share.")

    from vit_jax.runs.sweeps.record import locked_folder, update_record
    from vit_jax.runs.sweeps.sweep_file import load_sweep

    folder = Path(flags.out)
    sweep = load_sweep(flags.file, overrides)
    if flags.dry_run:
        record = update_record(folder, flags.file, sweep, overrides)
        for name, command in make_commands(record, folder).items():
            print(f"# {name}\n{shlex.join(command)}")
        return 0
    with locked_folder(folder):
        code = run_sweep(update_record(folder, flags.file, sweep, overrides), folder, flags)
    if code > 1:
        print(f"Stopped after saving every run. To resume: python -m vit_jax sweep {shlex.join(argv)}", file=sys.stderr)
    return code


def run_sweep(record: "SweepRecord", folder: Path, flags: argparse.Namespace) -> int:
    """Run all unfinished runs, print the summary and return the exit code."""
    from vit_jax.runs.sweeps.board import Board
    from vit_jax.runs.sweeps.controller import Controller
    from vit_jax.runs.sweeps.halving import SuccessiveHalving

    if flags.search and not record.metric:
        raise UserError(
            f"--search={flags.search} needs a metric; set it in the file, as Sweep(metric='test/accuracy')."
        )
    search = SuccessiveHalving(record.mode) if flags.search else None
    board = Board(record.metric, record.mode)
    commands = make_commands(record, folder)
    controller = Controller(record, folder, commands, make_executor(flags), board, flags.retries, search)
    try:
        code = controller.run()
    finally:
        board.close()
    board.summary(record.runs, controller.progress)
    if any(run.state == "failed" for run in record.runs):
        print(f"The output of each run is in {folder}/NAME.log; the same command retries failed runs.")
    return code


def make_commands(record: "SweepRecord", folder: Path) -> dict[str, list[str]]:
    """Return the training command of each run by name."""
    from vit_jax.runs.sweeps.sweep_file import config_flags

    commands = {}
    for run in record.runs:
        config = run.settings.get("config", record.config)
        words = [sys.executable, "-m", "vit_jax.main", f"--config={config}", f"--workdir={folder / run.name}"]
        overrides = [*record.overrides, *config_flags(run.settings)]
        commands[run.name] = [*words, *(f"--config.{key}={text}" for key, text in overrides)]
    return commands


def make_executor(flags: argparse.Namespace) -> "Executor":
    """Return the executor that the flags select."""
    if flags.executor == "ray":
        from vit_jax.runs.sweeps.ray import Needs, RayExecutor

        needs = Needs(1.0 if flags.cpus is None else flags.cpus, flags.gpus or 0.0, flags.tpus or 0)
        return RayExecutor(flags.address or "auto", needs, flags.jobs)
    from vit_jax.runs.sweeps.executor import LocalExecutor

    return LocalExecutor(flags.jobs)


def make_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="vit sweep", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    add = parser.add_argument
    add("file", metavar="FILE.py[:ARG]", help="a file with get_sweep()")
    add("--out", type=path_flag, required=True, metavar="DIR", help="a new folder, or the folder of a sweep to resume")
    add("--jobs", type=number_flag(Count), metavar="N", help="concurrent runs; default: one per accelerator, or 1")
    add("--retries", type=number_flag(Threads), default=2, metavar="K", help="retries of a crashed run; default 2")
    add(
        "--search",
        choices=("asha",),
        help="stop runs with a poor metric early; for random settings, use sample(...) in the file",
    )
    add("--config.KEY", metavar="VALUE", help="override a key of every run's config")
    add("--executor", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    add("--address", help="HOST:PORT of the cluster; default: the cluster that this machine belongs to")
    add(
        "--cpus",
        type=number_flag(Annotated[float, Between(0, 1024)]),
        metavar="N",
        help="cores per run on a cluster; default 1",
    )
    add(
        "--gpus",
        type=number_flag(Annotated[float, Between(0, 1024)]),
        metavar="N",
        help="GPUs per run, such as 1 or 0.5; default 0",
    )
    add("--tpus", type=number_flag(Threads), metavar="N", help="TPU chips per run; default 0")
    add("--dry-run", action="store_true", help="print the runs with their commands and exit")
    return parser
