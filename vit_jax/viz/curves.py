"""Learning curves of a run as a picture."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss, accuracy, learning rate and speed against the step, from the rows of metrics.jsonl, into a PNG file."""
    names = {key for row in rows for key in row}
    evals = sorted(name.removesuffix("/loss") for name in names if name.endswith("/loss"))
    accuracies = sorted(name for name in names if re.search(r"/(accuracy|mean_accuracy|shot\d+)$", name))
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)

    def plot(axis, title: str, series: Mapping[str, str], scale: float = 1.0, log: bool = False) -> None:
        for label, key in series.items():
            points = [(row["step"], scale * row[key]) for row in rows if row.get(key) is not None]
            if points:
                axis.plot(
                    *zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, markersize=3
                )
        axis.set(title=title, xlabel="step", yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
        if axis.lines and len(series) > 1:
            axis.legend()

    plot(axes[0, 0], "loss", {"train (augmented)": "loss"} | {name: f"{name}/loss" for name in evals}, log=True)
    plot(
        axes[0, 1],
        "accuracy, %",
        {"train (augmented)": "accuracy"} | {n.removesuffix("/accuracy"): n for n in accuracies},
        scale=100.0,
    )
    plot(axes[1, 0], "learning rate", {"lr": "lr"})
    plot(axes[1, 1], "images per second", {"speed": "images_per_second"})
    figure.savefig(path, dpi=110)
