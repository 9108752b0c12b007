"""What runs have reached: vit report DIR... [--paper=experiments/STUDY] [--metric=NAME] [--out=DIR] [--watch[=SECONDS]]."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax.cli.command import Parser
from vit_jax.types import UserError

EVERY = 30.0  # seconds between reports of --watch


def main(argv: Sequence[str]) -> int:
    """Prints the runs in and under folders as tables, and writes them as report.csv, report.md, report.html and curves.png."""
    parser = Parser(prog="vit report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="a workdir, or a folder that contains some; also on gs:// or s3://"
    )
    parser.add_argument("--paper", metavar="FOLDER", help="a study with paper.json, whose numbers stand beside ours")
    parser.add_argument("--metric", help="what runs are compared by; default: the paper's, or test/accuracy")
    parser.add_argument(
        "--out", metavar="DIR", help="where the files go; default: the first DIR, where it is not on a store"
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=EVERY,
        metavar="SECONDS",
        help=f"again and again, by default every {EVERY:g} s",
    )
    flags = parser.parse(watched(argv))
    if flags.watch is not None and not 0 < flags.watch < float("inf"):
        raise UserError(f"--watch={flags.watch}: expected a number of seconds, such as 30.")

    from rich.console import Console

    from vit_jax import stores
    from vit_jax.checkpoint.remote import Records
    from vit_jax.runs.reports.report import make_report
    from vit_jax.runs.reports.runs import Known, NoRunsError
    from vit_jax.runs.reports.tables import print_tables

    out, console = Path(flags.out or flags.folders[0]), Console()
    if stores.is_remote(flags.out or flags.folders[0]):
        raise UserError("A report is not written to an object store; say with --out=DIR where it goes here.")
    places, known = [Records(folder) for folder in flags.folders], Known()
    while True:
        try:
            for place in places:
                place.look()
            report = make_report([place.path for place in places], flags.paper, flags.metric, known)
            files = write(report, out, flags.watch)
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


def watched(argv: Sequence[str]) -> list[str]:
    """The same words, but that a --watch does not take the DIR after it for its seconds."""
    number = re.compile(r"-?\d*\.?\d+$")
    alone = [
        word == "--watch" and not number.match(after) for word, after in zip(argv, [*argv[1:], "DIR"], strict=False)
    ]
    return [f"{word}={EVERY:g}" if bare else word for word, bare in zip(argv, alone, strict=True)]


def write(report: Any, out: Path, refresh: float | None) -> list[Path]:
    """Writes the files of a report, each replaced at once; the page is loaded anew after `refresh` seconds."""
    from vit_jax.checkpoint.workdir import write_text
    from vit_jax.runs.reports.page import as_page
    from vit_jax.runs.reports.tables import as_csv, as_markdown, ranked_groups
    from vit_jax.viz.groups import draw_groups

    texts = {
        "report.csv": as_csv(report),
        "report.md": as_markdown(report),
        "report.html": as_page(report, refresh),
    }
    curves = {
        metric: {group.name: [run.curves.get(metric, ()) for run in group.runs] for group in ranked_groups(report)}
        for metric in report.panels
    }
    files = [*texts, "curves.png"] if curves else [*texts]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(out / name, text)
        if curves:
            draw_groups(curves, out / "curves.partial.png")
            os.replace(out / "curves.partial.png", out / "curves.png")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from None
    return [out / name for name in files]
