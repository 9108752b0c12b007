"""Compare runs: vit report DIR... [--paper=experiments/STUDY] [--metric=NAME] [--out=DIR] [--watch[=SECONDS]]."""

import itertools
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vit_jax.cli.command import Parser, number_flag, path_flag
from vit_jax.types import Between, UserError

if TYPE_CHECKING:
    from vit_jax.runs.reports.comparison import RunComparison

WATCH_SECONDS = 30.0  # default of --watch

EXAMPLES = """
vit report workdirs/digits_sweep
vit report workdirs/a workdirs/b --out=report --watch
"""


def main(argv: Sequence[str]) -> int:
    """Print the runs in and below folders as tables, and write report.csv, report.md, report.html and curves.png."""
    parser = Parser(prog="vit report", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    add = parser.add_argument
    add(
        "folders",
        type=path_flag,
        nargs="+",
        metavar="DIR",
        help="a workdir, or a folder that contains workdirs; may be on gs:// or s3://",
    )
    add(
        "--paper",
        type=path_flag,
        metavar="FOLDER",
        help="a study with paper.json, to show its published numbers next to ours",
    )
    add("--metric", help="metric to compare by; default: the paper's, or test/accuracy")
    add(
        "--out",
        type=path_flag,
        metavar="DIR",
        help="folder for the files; default: the first DIR, unless it is on an object store",
    )
    watch_help = f"repeat every SECONDS; default {WATCH_SECONDS:g}"
    seconds = number_flag(Annotated[float, Between(0.1, 1e6)])
    add("--watch", nargs="?", type=seconds, const=WATCH_SECONDS, metavar="SECONDS", help=watch_help)
    flags = parser.parse(with_watch_value(argv))

    from rich.console import Console

    from vit_jax import stores
    from vit_jax.checkpoint.remote import RunFiles
    from vit_jax.runs.reports.collect import NoRunsError, RunCache
    from vit_jax.runs.reports.comparison import compare_runs
    from vit_jax.runs.reports.tables import print_tables

    out, console = flags.out or flags.folders[0], Console(emoji=False)
    if stores.is_remote(out):
        raise UserError(f"The report cannot be written to {out}; choose a local folder with --out=DIR.")
    places = [RunFiles(folder) for folder in flags.folders]
    cache: RunCache = {}
    while True:
        try:
            for place in places:
                place.sync()
            report = compare_runs([place.path for place in places], flags.paper, flags.metric, cache)
            files = write_files(report, Path(out), flags.watch)
            if flags.watch is not None:
                console.clear()
            print_tables(report, console)
            print(*files, sep="\n", flush=True)
        except NoRunsError as error:
            if flags.watch is None:
                raise
            print(error, flush=True)
        if flags.watch is None:
            return 0
        time.sleep(flags.watch)


def with_watch_value(argv: Sequence[str]) -> list[str]:
    """Return the arguments with a value for a --watch without one, which would otherwise consume the following DIR."""
    number = re.compile(r"-?\d*\.?\d+$")
    bare = [word == "--watch" and not number.match(after) for word, after in itertools.pairwise([*argv, ""])]
    return [f"{word}={WATCH_SECONDS:g}" if alone else word for word, alone in zip(argv, bare, strict=True)]


def write_files(report: "RunComparison", out: Path, refresh: float | None) -> list[Path]:
    """Write the files of a report, each atomically; the page reloads itself every `refresh` seconds."""
    from vit_jax.checkpoint.workdir import write_text
    from vit_jax.runs.reports.page import as_page
    from vit_jax.runs.reports.tables import as_csv, as_markdown, ranked_groups
    from vit_jax.viz.curves import draw_group_curves

    texts = {
        "report.csv": as_csv(report),
        "report.md": as_markdown(report),
        "report.html": as_page(report, refresh),
    }
    panels = {
        metric: {group.name: [run.curves.get(metric, ()) for run in group.runs] for group in ranked_groups(report)}
        for metric in report.panels
    }
    files = [*texts, "curves.png"] if panels else [*texts]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(out / name, text)
        if panels:
            draw_group_curves(panels, out / "curves.partial.png")
            os.replace(out / "curves.partial.png", out / "curves.png")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from None
    return [out / name for name in files]
