"""Format the tables of a report for the terminal and as CSV and Markdown."""

import csv
import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit_jax import printable
from vit_jax.config.factory import short_names
from vit_jax.runs.reports.collect import RunResult, format_value
from vit_jax.runs.reports.comparison import RunComparison
from vit_jax.runs.reports.paper import RowComparison
from vit_jax.runs.reports.seed_groups import SeedGroup, SeedStatistics
from vit_jax.runs.sweeps.board import format_metric

# Limits for the terminal.
MAX_ROWS, MAX_KEYS = 40, 5

# Title, header and rows.
TextTable = tuple[str, list[str], list[list[str]]]


def format_hours(hours: float | None) -> str:
    """Return hours as `12 s`, `19 min` or `2.5 h`; "" for None."""
    if hours is None:
        return ""
    seconds = 3600 * hours
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if hours < 1.5 else f"{hours:.1f} h"


def mean_and_spread(stats: SeedStatistics | None, digits: int = 4, name: str = "") -> str:
    """Return a mean with the sample standard deviation, as `0.9000 ± 0.0100` or `90.00 ± 1.00 %`; "" for None."""
    if stats is None:
        return ""
    scale, digits, unit = (100, 2, " %") if printable.is_rate(name) else (1, digits, "")
    spread = "" if stats.spread is None else f" ± {scale * stats.spread:.{digits}f}"
    return f"{scale * stats.mean:.{digits}f}{spread}{unit}"


def short_commit(commit: str) -> str:
    """Return commits shortened to eight digits."""
    return ", then ".join(one[:8] + ("+changes" if one.endswith("+changes") else "") for one in commit.split(", then "))


def ranked_runs(report: RunComparison) -> list[RunResult]:
    """Return the runs, best last value first."""
    sign = -1 if report.mode == "max" else 1
    values = {run.name: run.last(report.metric) for run in report.runs}
    return sorted(report.runs, key=lambda run: (values[run.name] is None, sign * (values[run.name] or 0.0)))


def run_table(report: RunComparison, keys: Sequence[str]) -> TextTable:
    """Return the table of runs, best first, with columns for the given keys."""
    names = short_names(report.keys)
    head = ["run", "state", *(names[key] for key in keys), "seed", f"last {report.metric}", "best", "at step"]
    head += ["time", "hardware", "commit"]
    lines = []
    for run in ranked_runs(report):
        step, best = run.best(report.metric, report.mode) or ("", None)
        settings = (format_value(run.config.get(key)) for key in (*keys, "seed"))
        reached = (
            format_metric(run.last(report.metric), report.metric),
            format_metric(best, report.metric),
            str(step),
            format_hours(run.hours),
        )
        lines.append([run.name, run.state, *settings, *reached, run.hardware, short_commit(run.commit)])
    return f"{report.title}; {report.metric}, {report.better}", head, lines


def ranked_groups(report: RunComparison) -> list[SeedGroup]:
    """Return the groups, best mean first."""
    sign = -1 if report.mode == "max" else 1
    found = [(group.statistics(report.metric), group) for group in report.groups]
    return [group for stats, group in sorted(found, key=lambda pair: sign * pair[0].mean if pair[0] else math.inf)]


def seed_table(report: RunComparison) -> TextTable:
    """Return the table of groups over seeds, best first."""
    lines = []
    for group in ranked_groups(report):
        stats = group.statistics(report.metric)
        interval = (
            "" if stats is None or stats.confidence is None else f"± {format_metric(stats.confidence, report.metric)}"
        )
        lines.append([group.name, mean_and_spread(stats, name=report.metric), interval, finished_count(group, stats)])
    return (
        "Over seeds, finished runs",
        ["settings", f"{report.metric}, mean ± deviation", "95 % of the mean", "runs"],
        lines,
    )


def finished_count(group: SeedGroup, stats: SeedStatistics | None) -> str:
    """Return the number of finished runs of a group, as `3` or `2 of 3`."""
    n = 0 if stats is None else stats.n
    return str(n) if n == len(group.runs) else f"{n} of {len(group.runs)}"


def paper_table(report: RunComparison) -> TextTable:
    """Return the table of published numbers and ours."""
    assert report.paper is not None
    unit = f", {report.paper.unit}" if report.paper.unit else ""
    head = ["name", f"published{unit}", f"ours{unit}", "runs", "difference", "state"]
    head += ["hardware", "time a run", "commit"]
    lines = [paper_line(row) for row in report.paper_rows]
    if any(comparison.row.note for comparison in report.paper_rows):
        head.append("note")
        lines = [[*line, comparison.row.note] for line, comparison in zip(lines, report.paper_rows, strict=True)]
    return f"{report.paper.title} ({report.paper.source}), {report.paper.metric}", head, lines


def paper_line(comparison: RowComparison) -> list[str]:
    """Return a row of `paper_table`."""
    row, ours, difference = comparison.row, comparison.ours, comparison.difference
    published = "" if row.published is None else f"{row.published:g}" + (f" ± {row.spread:g}" if row.spread else "")
    return [
        row.name,
        published,
        mean_and_spread(ours, 2) if ours else "not run" if comparison.state == "not run" else "unfinished",
        str(ours.n) if ours else "0",
        "" if difference is None else f"{difference:+.2f}",
        comparison.state,
        comparison.hardware,
        format_hours(comparison.hours),
        short_commit(comparison.commit),
    ]


def all_tables(report: RunComparison, keys: Sequence[str]) -> list[TextTable]:
    """Return all tables: the paper's, the groups if there are several seeds, and the runs."""
    parts: list[TextTable] = [] if report.paper is None else [paper_table(report)]
    if len(report.groups) < len(report.runs):
        parts.append(seed_table(report))
    return [*parts, run_table(report, keys)]


def print_tables(report: RunComparison, console: Console) -> None:
    """Print the tables to a terminal; long tables are truncated."""
    named = keys_in_names(report)
    keys = [key for key in report.keys if key not in named]
    for title, head, lines in all_tables(report, keys if len(keys) <= MAX_KEYS else []):
        head, lines, constant = drop_constant_columns(head, lines)
        table = Table(title=_text(title), title_justify="left", caption=_text(constant), caption_justify="left")
        for name in head:
            table.add_column(_text(name), overflow="fold")
        for row in lines[:MAX_ROWS]:
            table.add_row(*map(_text, row))
        if len(lines) > MAX_ROWS:
            table.caption = Text("\n").join([Text(f"... and {len(lines) - MAX_ROWS:,} more"), _text(constant)])
        console.print(table, markup=False)
    for reason in report.broken:
        console.print(_text(f"left out: {reason}"))


def _text(text: str) -> Text:
    return Text(printable.line(text))


def keys_in_names(report: RunComparison) -> set[str]:
    """Return the keys with values that appear in the names of all runs, as in a sweep."""
    parts = [(run, run.name.split("/")[-1].split(",")) for run in report.runs]
    names = short_names([*report.keys, "seed"]).items()
    return {key for key, name in names if all(f"{name}={format_value(run.config.get(key))}" in p for run, p in parts)}


def drop_constant_columns(head: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]], str]:
    """Remove columns, except the first, with the same value in all rows, and return these values as a caption."""
    if len(lines) < 2:
        return head, lines, ""
    constant = {index for index in range(1, len(head)) if len({line[index] for line in lines}) == 1}
    kept = [index for index in range(len(head)) if index not in constant]
    caption = "; ".join(f"{head[index]}: {lines[0][index]}" for index in sorted(constant) if lines[0][index])
    return [head[i] for i in kept], [[line[i] for i in kept] for line in lines], caption


def as_csv(report: RunComparison) -> str:
    """Return the runs as CSV, with all differing keys and full precision."""
    head = ["run", "state", "step", "steps", "seed", *report.keys, f"last {report.metric}", f"best {report.metric}"]
    head += ["best step", "hours", "hardware", "commit", "workdir"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(printable.csv_cell, head))
    for run in report.runs:
        step, best = run.best(report.metric, report.mode) or (None, None)
        state = ("finished" if run.finished else "unfinished", run.step, run.steps)
        settings = (format_value(run.config.get(key)) for key in ("seed", *report.keys))
        reached = (run.last(report.metric), best, step, run.hours)
        row = [run.name, *state, *settings, *reached, run.hardware, run.commit, run.path]
        writer.writerow(map(printable.csv_cell, row))
    return file.getvalue()


def as_markdown(report: RunComparison) -> str:
    """Return the tables in Markdown."""
    parts = []
    for title, head, lines in all_tables(report, report.keys):
        cells = [[printable.markdown(cell) for cell in row] for row in (head, *lines)]
        rows = [cells[0], ["---"] * len(head), *cells[1:]]
        parts.append(f"## {printable.markdown(title)}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    if report.broken:
        parts.append("Left out:\n\n" + "\n".join(f"* {printable.markdown(reason)}" for reason in report.broken))
    return "\n\n".join(parts) + "\n"
