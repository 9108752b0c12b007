"""A report as one HTML file that opens offline: tables to sort and filter, and learning curves of the runs chosen in them."""

import importlib.resources
import json
import time
from collections.abc import Sequence
from typing import Any

from vit_jax.config.factory import short_names
from vit_jax.runs.reports.report import Report
from vit_jax.runs.reports.runs import Run
from vit_jax.runs.reports.tables import duration, paper_cells, ranked, short_commit

# Points of curves in a page: some 10 bytes each.
POINTS = 400_000
# A curve has no more than a screen can show, and no fewer than show its shape.
MOST, LEAST = 1000, 24
Curve = Sequence[tuple[int, float]]


def as_page(report: Report, refresh: float | None = None) -> str:
    """The page, which loads itself anew after `refresh` seconds if they are given."""
    folder = importlib.resources.files("vit_jax.runs.reports")
    parts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "curves.js", "page.js")}
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("{{style}}", parts["page.css"]).replace("{{script}}", parts["curves.js"] + parts["page.js"])
    return page.replace(
        "{{data}}", embedded(page_data(report, refresh))
    )  # last, as what runs are called may be anything


def embedded(values: Any) -> str:
    """JSON that no name or value in it can turn into HTML."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def page_data(report: Report, refresh: float | None) -> dict[str, Any]:
    """What the page shows, as page.js reads it."""
    index = {run.name: position for position, run in enumerate(report.runs)}
    of_group = {run.name: position for position, group in enumerate(report.groups) for run in group.runs}
    metrics = varying(report.runs)
    curves = [[run.curves.get(metric, ()) for metric in metrics] for run in report.runs]
    most = fitting([len(curve) for several in curves for curve in several])
    names = short_names(report.keys)
    return {
        "title": report.title,
        "metric": report.metric,
        "mode": report.mode,
        "better": report.better,
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "refresh": refresh,
        "broken": list(report.broken),
        "keys": list(report.keys),
        "short": [names[key] for key in report.keys],
        "runs": [run_data(report, run, of_group[run.name]) for run in report.runs],
        "best": [index[run.name] for run in ranked(report)],
        "groups": [
            {"name": group.name, "runs": [index[run.name] for run in group.runs]}
            | statistics_data(group.statistics(report.metric))
            for group in report.groups
        ],
        "paper": paper_data(report),
        "metrics": metrics,
        "panels": [metric for metric in report.panels if metric in metrics],
        "curves": [[encoded(thinned(curve, most)) for curve in several] for several in curves],
        "thinned": f"Curves of more than {most} points are thinned: to their ends, and the lowest and highest point of each of "
        f"{(most - 2) // 2} stretches; metrics.jsonl has all."
        if any(len(curve) > most for several in curves for curve in several)
        else "",
    }


def run_data(report: Report, run: Run, group: int) -> dict[str, Any]:
    """A line of the table of runs."""
    step, best = run.best(report.metric, report.mode) or (None, None)
    return {
        "name": run.name,
        "path": str(run.path),
        "group": group,
        "finished": run.finished,
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "settings": [run.config.get(key) for key in report.keys],
        "seed": run.config.get("seed"),
        "last": run.last(report.metric),
        "best": best,
        "best_step": step,
        "hours": run.hours,
        "time": duration(run.hours),
        "hardware": run.hardware,
        "commit": short_commit(run.commit),
    }


def statistics_data(stats: Any) -> dict[str, Any]:
    """The statistics of a group, or that there are none yet."""
    if stats is None:
        return {"mean": None, "spread": None, "confidence": None, "n": 0}
    return {"mean": stats.mean, "spread": stats.spread, "confidence": stats.confidence, "n": stats.n}


def paper_data(report: Report) -> dict[str, Any] | None:
    """The table beside the paper."""
    if report.paper is None:
        return None
    title, head, lines = paper_cells(report)
    return {"title": title, "head": head, "lines": lines}


def varying(runs: Sequence[Run]) -> list[str]:
    """The metrics that have more than one value, as the number of test images has not."""
    seen: dict[str, set[float]] = {}
    for run in runs:
        for metric, curve in run.curves.items():
            values = seen.setdefault(metric, set())
            if len(values) < 2:
                values.update(value for _, value in curve)
    return sorted(metric for metric, values in seen.items() if len(values) > 1)


def fitting(lengths: Sequence[int]) -> int:
    """How many points a curve may have, so that curves of these lengths have POINTS together."""
    low, high = LEAST, MOST
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(length, middle) for length in lengths) <= POINTS:
            low = middle
        else:
            high = middle - 1
    return low


def thinned(curve: Curve, most: int) -> Curve:
    """A curve of at most so many points: its ends, and of equal stretches between them the lowest and the highest point."""
    if len(curve) <= most:
        return curve
    inner, stretches = curve[1:-1], (most - 2) // 2
    kept = [curve[0]]
    for position in range(stretches):
        part = inner[position * len(inner) // stretches : (position + 1) * len(inner) // stretches]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [*kept, curve[-1]]


def encoded(curve: Curve) -> tuple[list[int], list[float]] | None:
    """A curve as page.js reads it: each step as the difference from the one before, and values to five digits."""
    if not curve:
        return None
    steps = [step for step, _ in curve]
    values = [float(f"{value:.5g}") for _, value in curve]
    return [now - before for before, now in zip([0, *steps], steps, strict=False)], values
