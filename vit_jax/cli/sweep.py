"""Run many settings: vit sweep experiments/X/sweep.py[:ARG] --out=DIR [--jobs=N] [--config.KEY=VALUE ...] [--dry-run].

The file has get_sweep(), which says as data what to vary; see vit_jax/runs/sweeps/space.py. DIR/NAME is the workdir of a run,
and DIR/NAME.log what it printed. The same command again, after whatever end, takes up what is not finished.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_jax.cli.command import Parser, split_overrides
from vit_jax.runs.sweeps.executor import Executor
from vit_jax.types import UserError

if TYPE_CHECKING:
    from vit_jax.runs.sweeps.record import Record


def main(argv: Sequence[str]) -> int:
    """0 when every run is finished, 1 when some failed; 130 or 143 when it was told to end before."""
    overrides, rest = split_overrides(argv)
    flags = make_parser().parse(rest)
    if (flags.jobs is not None and flags.jobs < 1) or flags.retries < 0:
        raise UserError(f"--jobs must be at least 1 and --retries at least 0; found {flags.jobs} and {flags.retries}.")
    alone = [name for name in ("address", "cpus", "gpus", "tpus") if getattr(flags, name) is not None]
    if flags.executor != "ray" and alone:
        raise UserError(f"--{alone[0]} is for a cluster; add --executor=ray, or see --jobs for this machine.")
    if not flags.out or "://" in flags.out:
        raise UserError(f"--out={flags.out}; expected a folder of this machine, or one that all machines share.")

    from vit_jax.runs.sweeps import check, record

    folder = Path(flags.out)
    sweep = check.read_sweep(flags.file, overrides)
    if flags.dry_run:
        planned = record.begin(folder, flags.file, sweep, overrides)
        for name, command in commands_of(planned, folder).items():
            print(f"# {name}\n{shlex.join(command)}")
        return 0
    with record.alone(folder):
        code = carry_out(record.begin(folder, flags.file, sweep, overrides), folder, flags)
    if code > 1:
        print(f"Stopped, every run saved. To go on: python -m vit_jax sweep {shlex.join(argv)}", file=sys.stderr)
    return code


def carry_out(planned: "Record", folder: Path, flags: argparse.Namespace) -> int:
    """Runs what is not finished, then prints the table; gives the exit code."""
    from vit_jax.runs.sweeps.board import Board
    from vit_jax.runs.sweeps.controller import Controller
    from vit_jax.runs.sweeps.search import Halving

    if flags.search and not planned.metric:
        raise UserError(
            f"--search={flags.search}: the sweep has no metric; give it one, as in Sweep(metric='test/accuracy')."
        )
    search = Halving(planned.mode) if flags.search else None
    board = Board(planned.metric, planned.mode)
    commands = commands_of(planned, folder)
    controller = Controller(planned, folder, commands, make_executor(flags), board, flags.retries, search)
    try:
        code = controller.run()
    finally:
        board.close()
    board.summary(planned.runs, controller.progress)
    if any(run.state == "failed" for run in planned.runs):
        print(f"What the runs printed is in {folder}/NAME.log; the same command tries failed ones again.")
    return code


def commands_of(planned: "Record", folder: Path) -> dict[str, list[str]]:
    """The command of each run by its name, which is that of any training run."""
    from vit_jax.runs.sweeps.check import flags_of

    commands = {}
    for run in planned.runs:
        config = run.settings.get("config", planned.config)
        words = [sys.executable, "-m", "vit_jax.main", f"--config={config}", f"--workdir={folder / run.name}"]
        flags = [*planned.overrides, *flags_of(run.settings)]
        commands[run.name] = [*words, *(f"--config.{key}={text}" for key, text in flags)]
    return commands


def make_executor(flags: argparse.Namespace) -> Executor:
    """What runs the jobs."""
    if flags.executor == "ray":
        from vit_jax.runs.sweeps.ray import Needs, Ray

        needs = Needs(1.0 if flags.cpus is None else flags.cpus, flags.gpus or 0.0, flags.tpus or 0)
        return Ray(flags.address or "auto", needs, flags.jobs)
    from vit_jax.runs.sweeps.local import Local

    return Local(flags.jobs)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="vit sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE.py[:ARG]", help="a file with get_sweep()")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder, or that of a sweep to go on with")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at once; default one for each accelerator, or 1 without any"
    )
    parser.add_argument(
        "--retries", type=int, default=2, metavar="K", help="how often a run that crashed is tried again; default 2"
    )
    parser.add_argument(
        "--search",
        choices=("asha",),
        help="stop runs early whose metric is behind that of others; for random settings, the file's runs are sample(...)",
    )
    parser.add_argument("--config.KEY", metavar="VALUE", help="another value for a key of every run's config")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    parser.add_argument("--address", help="of the cluster, HOST:PORT; default that which this machine belongs to")
    parser.add_argument("--cpus", type=float, metavar="N", help="cores for each run on a cluster; default 1")
    parser.add_argument("--gpus", type=float, metavar="N", help="GPUs for each, such as 1 or 0.5; default 0")
    parser.add_argument("--tpus", type=int, metavar="N", help="TPU chips for each; default 0")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their commands, start nothing")
    return parser
