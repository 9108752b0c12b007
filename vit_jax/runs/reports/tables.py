"""The tables of a report: for a terminal, as CSV and as Markdown."""

import csv
import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit_jax.config.factory import short_names
from vit_jax.runs.reports.groups import Group, Statistics
from vit_jax.runs.reports.paper import Comparison
from vit_jax.runs.reports.report import Report
from vit_jax.runs.reports.runs import Run, as_text

# What a terminal shows.
MOST_ROWS, MOST_KEYS = 40, 5

# A title and lines of cells below a head, all text.
Cells = tuple[str, list[str], list[list[str]]]


def number(value: float | None) -> str:
    """A number to four places, a small one to four digits; nothing for None."""
    return "" if value is None else f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.4g}"


def duration(hours: float | None) -> str:
    """Hours as people say them: `12 s`, `19 min`, `2.5 h`; nothing for None."""
    if hours is None:
        return ""
    seconds = 3600 * hours
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if hours < 1.5 else f"{hours:.1f} h"


def spread(stats: Statistics | None, digits: int = 4) -> str:
    """A mean with the sample standard deviation, as `0.9000 ± 0.0100`; nothing for None."""
    if stats is None:
        return ""
    return f"{stats.mean:.{digits}f}" + ("" if stats.spread is None else f" ± {stats.spread:.{digits}f}")


def short_commit(commit: str) -> str:
    """Commits by their first eight digits."""
    return ", then ".join(one[:8] + ("+changes" if one.endswith("+changes") else "") for one in commit.split(", then "))


def ranked(report: Report) -> list[Run]:
    """The runs, those with the best last value first."""
    sign = -1 if report.mode == "max" else 1
    values = {run.name: run.last(report.metric) for run in report.runs}
    return sorted(report.runs, key=lambda run: (values[run.name] is None, sign * (values[run.name] or 0.0)))


def run_cells(report: Report, keys: Sequence[str]) -> Cells:
    """The runs, best first, with the values of some keys."""
    names = short_names(report.keys)
    head = ["run", "state", *(names[key] for key in keys), "seed", f"last {report.metric}", "best", "at step"]
    head += ["time", "hardware", "commit"]
    lines = []
    for run in ranked(report):
        step, best = run.best(report.metric, report.mode) or ("", None)
        settings = (as_text(run.config.get(key)) for key in (*keys, "seed"))
        reached = (number(run.last(report.metric)), number(best), str(step), duration(run.hours))
        lines.append([run.name, run.state, *settings, *reached, run.hardware, short_commit(run.commit)])
    return f"{report.title}; {report.metric}, {report.better}", head, lines


def ranked_groups(report: Report) -> list[Group]:
    """The groups, those with the best mean first."""
    sign = -1 if report.mode == "max" else 1
    found = [(group.statistics(report.metric), group) for group in report.groups]
    return [group for stats, group in sorted(found, key=lambda pair: sign * pair[0].mean if pair[0] else math.inf)]


def group_cells(report: Report) -> Cells:
    """The groups over seeds, best first."""
    lines = []
    for group in ranked_groups(report):
        stats = group.statistics(report.metric)
        interval = "" if stats is None or stats.confidence is None else f"± {stats.confidence:.4f}"
        lines.append([group.name, spread(stats), interval, counted(group, stats)])
    return (
        "Over seeds, finished runs",
        ["settings", f"{report.metric}, mean ± deviation", "95 % of the mean", "runs"],
        lines,
    )


def counted(group: Group, stats: Statistics | None) -> str:
    """How many runs a mean is over, and of how many."""
    n = 0 if stats is None else stats.n
    return str(n) if n == len(group.runs) else f"{n} of {len(group.runs)}"


def paper_cells(report: Report) -> Cells:
    """Ours beside the published numbers."""
    assert report.paper is not None
    unit = f", {report.paper.unit}" if report.paper.unit else ""
    head = [
        "name",
        f"published{unit}",
        f"ours{unit}",
        "runs",
        "difference",
        "state",
        "hardware",
        "time a run",
        "commit",
    ]
    lines = [paper_line(comparison) for comparison in report.comparisons]
    if any(comparison.row.note for comparison in report.comparisons):
        head.append("note")
        lines = [[*line, comparison.row.note] for line, comparison in zip(lines, report.comparisons, strict=True)]
    return f"{report.paper.title} ({report.paper.source}), {report.paper.metric}", head, lines


def paper_line(comparison: Comparison) -> list[str]:
    """See paper_cells."""
    row, ours, difference = comparison.row, comparison.ours, comparison.difference
    published = "" if row.published is None else f"{row.published:g}" + (f" ± {row.spread:g}" if row.spread else "")
    return [
        row.name,
        published,
        spread(ours, 2) if ours else "not run" if comparison.state == "not run" else "unfinished",
        str(ours.n) if ours else "0",
        "" if difference is None else f"{difference:+.2f}",
        comparison.state,
        comparison.hardware,
        duration(comparison.hours),
        short_commit(comparison.commit),
    ]


def tables(report: Report, keys: Sequence[str]) -> list[Cells]:
    """Every table of a report: the paper's first, then the groups where they are of several runs, then the runs."""
    parts: list[Cells] = [] if report.paper is None else [paper_cells(report)]
    if len(report.groups) < len(report.runs):
        parts.append(group_cells(report))
    return [*parts, run_cells(report, keys)]


def print_tables(report: Report, console: Console) -> None:
    """The tables in a terminal, long ones cut off."""
    named = named_keys(report)
    keys = [key for key in report.keys if key not in named]
    for title, head, lines in tables(report, keys if len(keys) <= MOST_KEYS else []):
        head, lines, alike = without_alike(head, lines)
        table = Table(title=Text(title), title_justify="left", caption=Text(alike), caption_justify="left")
        for name in head:
            table.add_column(Text(name), overflow="fold")
        for line in lines[:MOST_ROWS]:
            table.add_row(*map(Text, line))
        if len(lines) > MOST_ROWS:
            table.caption = Text(f"... and {len(lines) - MOST_ROWS:,} more\n{alike}")
        console.print(table, markup=False)
    for reason in report.broken:
        console.print(f"left out: {reason}", markup=False, highlight=False)


def named_keys(report: Report) -> set[str]:
    """The keys whose values all runs have in their names, as those of a sweep do."""
    names = short_names([*report.keys, "seed"])
    return {
        key
        for key, name in names.items()
        if all(f"{name}={as_text(run.config.get(key))}" in run.name.split("/")[-1].split(",") for run in report.runs)
    }


def without_alike(head: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]], str]:
    """A table without the columns, but for the first, that have one value throughout, and what these are."""
    if len(lines) < 2:
        return head, lines, ""
    alike = {index for index in range(1, len(head)) if len({line[index] for line in lines}) == 1}
    kept = [index for index in range(len(head)) if index not in alike]
    told = "; ".join(f"{head[index]}: {lines[0][index]}" for index in sorted(alike) if lines[0][index])
    return [head[i] for i in kept], [[line[i] for i in kept] for line in lines], told


def as_csv(report: Report) -> str:
    """The runs as CSV, with the values of every key that differs and with numbers in full."""
    head = ["run", "state", "step", "steps", "seed", *report.keys, f"last {report.metric}", f"best {report.metric}"]
    head += ["best step", "hours", "hardware", "commit", "workdir"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for run in report.runs:
        step, best = run.best(report.metric, report.mode) or (None, None)
        state = ("finished" if run.finished else "unfinished", run.step, run.steps)
        settings = (as_text(run.config.get(key)) for key in ("seed", *report.keys))
        reached = (run.last(report.metric), best, step, run.hours)
        writer.writerow([run.name, *state, *settings, *reached, run.hardware, run.commit, run.path])
    return file.getvalue()


def as_markdown(report: Report) -> str:
    """The tables in Markdown."""
    parts = []
    for title, head, lines in tables(report, report.keys):
        rows = [head, ["---"] * len(head), *([markdown_cell(cell) for cell in line] for line in lines)]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    parts += (
        ["Left out:\n\n" + "\n".join(f"* {markdown_cell(reason)}" for reason in report.broken)] if report.broken else []
    )
    return "\n\n".join(parts) + "\n"


def markdown_cell(text: str) -> str:
    """Text that stays in its cell, and is no HTML."""
    for what, instead in (("\\", "\\\\"), ("|", "\\|"), ("&", "&amp;"), ("<", "&lt;")):
        text = text.replace(what, instead)
    return " ".join(text.split())
