"""Learning curves of many runs as a picture: for each group of runs their mean and spread."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Groups that have a colour and a name; what comes after them is grey.
NAMED = 10
POINTS = 300
Curve = Sequence[tuple[int, float]]


def draw_groups(panels: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> None:
    """The mean of each group's curves and one sample standard deviation about it, into a PNG file with a panel for each metric.

    panels: metric -> name of the group, the most telling groups first -> the curves of its runs. A mean is over the steps that
    all runs of the group have.
    """
    figure = Figure(figsize=(6.5 * len(panels), 5), layout="constrained")
    named = list(next(iter(panels.values())))[:NAMED]
    colors = dict(zip(named, (f"C{index}" for index in range(NAMED)), strict=False))
    for axis, (metric, groups) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, curves in reversed(list(groups.items())):  # the first ones on top
            steps, mean, spread = averaged([curve for curve in curves if curve])
            color = colors.get(name, "0.75")
            style = {
                "color": color,
                "label": name if name in colors else None,
                "linewidth": 1.5 if name in colors else 0.7,
            }
            once = len(steps) == 1  # which makes no line
            axis.plot(steps, mean, marker="o" if once else None, **style)
            if once and name in colors:
                axis.errorbar(steps, mean, spread, fmt="none", ecolor=color, capsize=3)
            elif name in colors:
                axis.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        axis.set(title=metric, xlabel="step")
        axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    more = max(map(len, panels.values())) - NAMED
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside lower center",
        ncols=2,
        fontsize="small",
        title=f"the first {NAMED} of {NAMED + more} groups" if more > 0 else None,
    )
    figure.savefig(path, dpi=110)


def averaged(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and sample standard deviation of curves over the steps that all of them have, interpolated where need be."""
    if not curves:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = np.unique([step for curve in curves for step, _ in curve if first <= step <= last])
    steps = steps[np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int)] if len(steps) else steps
    values = np.array([np.interp(steps, *np.transpose(curve)) for curve in curves])
    return steps, values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
