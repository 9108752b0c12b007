"""Plot learning curves as PNG files: of one run, or of groups of runs with mean and spread."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vit_jax.printable import is_rate, picture
from vit_jax.viz.figure import save

MAX_COLORED = 10  # further groups are drawn in grey, without a label
MAX_POINTS = 300
Curve = Sequence[tuple[int, float]]


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot loss, measures, learning rate and speed against the step, given the rows of metrics.jsonl.

    The measures are the accuracies, or, without any, the other results of evaluators, such as a mean IoU.
    """
    names = {key for row in rows for key in row}
    evals = sorted(name.removesuffix("/loss") for name in names if name.endswith("/loss"))
    accuracies = sorted(name for name in names if "/" in name and is_rate(name))
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)

    def plot(axis, title: str, series: Mapping[str, str], scale: float = 1.0, log: bool = False) -> None:
        for label, key in series.items():
            points = [(row["step"], scale * row[key]) for row in rows if row.get(key) is not None]
            if points:
                marker = "o" if len(points) < 30 else None
                axis.plot(*zip(*points, strict=True), label=picture(label), marker=marker, markersize=3)
        axis.set(title=title, xlabel="step", yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
        if axis.lines and len(series) > 1:
            axis.legend()

    plot(axes[0, 0], "loss", {"train (augmented)": "loss"} | {name: f"{name}/loss" for name in evals}, log=True)
    accuracy = {"train (augmented)": "accuracy"} | {name.removesuffix("/accuracy"): name for name in accuracies}
    if accuracies or "accuracy" in names:
        plot(axes[0, 1], "accuracy, %", accuracy, scale=100.0)
    else:  # not those of each class, EVALUATOR/iou/CLASS
        others = sorted(n for n in names if n.count("/") == 1 and not n.endswith(("/loss", "/num_examples")))
        plot(axes[0, 1], "evaluation", {name: name for name in others[:MAX_COLORED]})
    plot(axes[1, 0], "learning rate", {"lr": "lr"})
    plot(axes[1, 1], "images per second", {"speed": "images_per_second"})
    save(figure, path)


def draw_group_curves(panels: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> None:
    """Plot the mean curve of each group with a band of one sample standard deviation, in one panel per metric.

    panels: metric -> group name, the most important groups first -> curves of its runs. Means are over the range of
    steps that all runs of a group share.
    """
    figure = Figure(figsize=(6.5 * len(panels), 5), layout="constrained")
    first_names = list(next(iter(panels.values())))[:MAX_COLORED]
    colors = {name: f"C{index}" for index, name in enumerate(first_names)}
    for axis, (metric, groups) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, curves in reversed(list(groups.items())):  # the first ones on top
            steps, mean, spread = mean_curve([curve for curve in curves if curve])
            colored, color = name in colors, colors.get(name, "0.75")
            single = len(steps) == 1
            label, width = (picture(name), 1.5) if colored else (None, 0.7)
            axis.plot(steps, mean, marker="o" if single else None, color=color, label=label, linewidth=width)
            if single and colored:
                axis.errorbar(steps, mean, spread, fmt="none", ecolor=color, capsize=3)
            elif colored:
                axis.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        axis.set(title=picture(metric), xlabel="step")
        axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    total = max(map(len, panels.values()))
    title = f"the first {MAX_COLORED} of {total} groups" if total > MAX_COLORED else None
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, fontsize="small", title=title)
    save(figure, path)


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, mean and sample standard deviation [n] over the shared range of steps, interpolating if needed."""
    if not curves:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = np.unique([step for curve in curves for step, _ in curve if first <= step <= last])
    if len(steps) > MAX_POINTS:
        steps = steps[np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int)]
    values = np.array([np.interp(steps, *np.transpose(curve)) for curve in curves])
    return steps, values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
