"""Write a report as one self-contained HTML file: sortable, filterable tables, and learning curves of selected runs."""

import dataclasses
import importlib.resources
import time
from collections.abc import Sequence
from typing import Any

from vit_jax.config.factory import short_names
from vit_jax.printable import html_json, is_rate
from vit_jax.runs.reports.collect import RunResult
from vit_jax.runs.reports.comparison import RunComparison
from vit_jax.runs.reports.tables import format_hours, paper_table, ranked_runs, short_commit
from vit_jax.viz.curves import Curve

TOTAL_POINTS = 400_000  # in all curves of a page, about 10 bytes each
# Points per curve: the most a screen can show, and the least needed for the shape.
MAX_POINTS, MIN_POINTS = 1000, 24
NO_STATISTICS = {"mean": None, "spread": None, "confidence": None, "n": 0}


def as_page(report: RunComparison, refresh: float | None = None) -> str:
    """Return the page, which reloads itself every `refresh` seconds if given."""
    folder = importlib.resources.files("vit_jax.runs.reports")
    parts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "curves.js", "page.js")}
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("{{style}}", parts["page.css"]).replace("{{script}}", parts["curves.js"] + parts["page.js"])
    # Last, because run names may contain anything.
    return page.replace("{{data}}", html_json(page_data(report, refresh)))


def page_data(report: RunComparison, refresh: float | None) -> dict[str, Any]:
    """Return the data that page.js displays."""
    index = {run.name: position for position, run in enumerate(report.runs)}
    group_of = {run.name: position for position, group in enumerate(report.groups) for run in group.runs}
    metrics = varying_metrics(report.runs)
    curves = [[run.curves.get(metric, ()) for metric in metrics] for run in report.runs]
    limit = points_per_curve(sum(bool(curve) for run_curves in curves for curve in run_curves))
    names = short_names(report.keys)
    return {
        "title": report.title,
        "metric": report.metric,
        "is_rate": is_rate(report.metric),
        "mode": report.mode,
        "better": report.better,
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "refresh": refresh,
        "broken": list(report.broken),
        "keys": list(report.keys),
        "short": [names[key] for key in report.keys],
        "runs": [run_data(report, run, group_of[run.name]) for run in report.runs],
        "best": [index[run.name] for run in ranked_runs(report)],
        "groups": [
            {"name": group.name, "runs": [index[run.name] for run in group.runs]}
            | (dataclasses.asdict(stats) if (stats := group.statistics(report.metric)) else NO_STATISTICS)
            for group in report.groups
        ],
        "paper": dict(zip(("title", "head", "lines"), paper_table(report), strict=True)) if report.paper else None,
        "metrics": metrics,
        "panels": [metric for metric in report.panels if metric in metrics],
        "curves": [[encode(thin(curve, limit)) for curve in run_curves] for run_curves in curves],
        "thinned": f"Curves of more than {limit} points show their ends and the lowest and highest point of each of "
        f"{(limit - 2) // 2} intervals; metrics.jsonl has all points."
        if any(len(curve) > limit for run_curves in curves for curve in run_curves)
        else "",
    }


def run_data(report: RunComparison, run: RunResult, group: int) -> dict[str, Any]:
    """Return a row of the table of runs."""
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
        "time": format_hours(run.hours),
        "hardware": run.hardware,
        "commit": short_commit(run.commit),
    }


def varying_metrics(runs: Sequence[RunResult]) -> list[str]:
    """Return the metrics with more than one value, unlike, for example, the number of test images."""
    seen: dict[str, set[float]] = {}
    for run in runs:
        for metric, curve in run.curves.items():
            values = seen.setdefault(metric, set())
            if len(values) < 2:
                values.update(value for _, value in curve)
    return sorted(metric for metric, values in seen.items() if len(values) > 1)


def points_per_curve(curves: int) -> int:
    """Return the limit of points per curve that keeps all curves within TOTAL_POINTS, within the bounds."""
    return max(MIN_POINTS, min(MAX_POINTS, TOTAL_POINTS // max(1, curves)))


def thin(curve: Curve, limit: int) -> Curve:
    """Reduce a curve to at most `limit` points: its ends, and the lowest and highest point of equal intervals."""
    if len(curve) <= limit:
        return curve
    inner, intervals = curve[1:-1], (limit - 2) // 2
    kept = [curve[0]]
    for position in range(intervals):
        part = inner[position * len(inner) // intervals : (position + 1) * len(inner) // intervals]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [*kept, curve[-1]]


def encode(curve: Curve) -> tuple[list[int], list[float]] | None:
    """Encode a curve for page.js: differences of steps, and values with five significant digits."""
    if not curve:
        return None
    steps = [step for step, _ in curve]
    values = [float(f"{value:.5g}") for _, value in curve]
    return [now - before for before, now in zip([0, *steps], steps, strict=False)], values
