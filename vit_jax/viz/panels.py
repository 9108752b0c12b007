"""Draw images and maps side by side, with the same colours for the same values."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_jax.printable import cut, picture
from vit_jax.viz.figure import save

SIDE = 2.6  # of a panel for a small image, in inches
MOST_WIDE = 9  # such panels next to each other; more make them smaller


@dataclasses.dataclass(frozen=True)
class Panel:
    """An image, a map, or a map laid over an image.

    image: uint8 [h, w, c]. map: [rows, cols], NaN if empty. limits: the values of the first and last colour. bar: the
    label of the colour bar; "" for no bar. point: (row, column) of a cross, as fractions of height and width. ticks:
    {axis: (its label, labels in equal steps along it)}. scale: size relative to the other panels.
    """

    title: str
    image: np.ndarray | None = None
    map: np.ndarray | None = None
    limits: tuple[float, float] | None = None
    colors: str = "viridis"
    bar: str = ""
    point: tuple[float, float] | None = None
    ticks: Mapping[str, tuple[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    scale: float = 1.0

    @property
    def height(self) -> int:
        """Rows of the image or the map."""
        return (self.map if self.image is None else self.image).shape[0]  # type: ignore[union-attr]

    @property
    def width(self) -> int:
        """Columns of the image or the map."""
        return (self.map if self.image is None else self.image).shape[1]  # type: ignore[union-attr]


def draw_panels(rows: Sequence[Sequence[Panel]], title: str, path: Path) -> None:
    """Draw rows of panels into a PNG file."""
    columns = max(map(len, rows))
    widths = [max(row[i].scale for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(panel.scale * panel.height / panel.width for panel in row) for row in rows]
    side = SIDE / max(1.0, sum(widths) / MOST_WIDE, sum(heights) / MOST_WIDE)
    size = (side * sum(widths) + 0.9, side * sum(heights) + 0.3 * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(picture(cut(title, int(11 * size[0]))), fontsize=10)
    grid = figure.subplots(len(rows), columns, squeeze=False, width_ratios=widths, height_ratios=heights)
    for axis_row, row in zip(grid, rows, strict=True):
        for axis in axis_row[len(row) :]:
            axis.set_axis_off()
        for axis, panel in zip(axis_row, row, strict=False):
            _draw(figure, axis, panel)
    save(figure, path)


def _draw(figure: Figure, axis: Any, panel: Panel) -> None:
    axis.set_title(picture(cut(panel.title, 36)), fontsize=9)
    axis.set(xticks=[], yticks=[])
    extent = (0, 1, 1, 0)
    aspect = panel.height / panel.width
    if panel.image is not None:
        image = panel.image[..., 0] if panel.image.shape[2] < 3 else panel.image[..., :3]
        axis.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, aspect=aspect, interpolation="nearest")
    if panel.map is not None:
        low, high = panel.limits or (float(np.nanmin(panel.map)), float(np.nanmax(panel.map)))
        over = panel.image is not None
        drawn = axis.imshow(
            panel.map, cmap=panel.colors, vmin=low, vmax=high if high > low else low + 1, extent=extent, aspect=aspect,
            interpolation="bilinear" if over else "nearest", alpha=0.6 if over else 1.0,
        )  # fmt: skip
        if panel.bar:
            figure.colorbar(drawn, ax=axis, shrink=0.85, label=panel.bar)
    if panel.point is not None:
        axis.plot(panel.point[1], panel.point[0], marker="+", color="red", markersize=12, markeredgewidth=2)
    for name, (label, steps) in panel.ticks.items():
        places = (np.arange(len(steps)) + 0.5) / len(steps)
        axis.set(**{f"{name}ticks": places, f"{name}label": label})
        axis.tick_params(length=0, labelsize=7)
        getattr(axis, f"set_{name}ticklabels")([picture(cut(step, 14)) for step in steps])


def tiled(tiles: Float[np.ndarray, "rows cols h w"] | UInt8[np.ndarray, "rows cols h w c"]) -> np.ndarray:
    """Arrange tiles in one array with a gap between them, filled with NaN or white."""
    rows, columns, height, width = tiles.shape[:4]
    gap = max(1, min(height, width) // 8)
    empty = 255 if tiles.dtype == np.uint8 else np.nan
    pad = [(0, 0), (0, 0), (0, gap), (0, gap), *[(0, 0)] * (tiles.ndim - 4)]
    padded = np.pad(tiles, pad, constant_values=empty).swapaxes(1, 2)
    return padded.reshape(rows * (height + gap), columns * (width + gap), *tiles.shape[4:])[:-gap, :-gap]


def draw_by_depth(
    groups: Mapping[str, Float[np.ndarray, "depth heads"]], labels: tuple[str, str], title: str, path: Path
) -> None:
    """Plot one number per head against the depth of its block, with one colour per group, into a PNG file."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for number, (name, values) in enumerate(groups.items()):
        depth = np.repeat(np.arange(1, len(values) + 1), values.shape[1])
        axis.scatter(depth, values.ravel(), s=14, color=f"C{number % 10}", label=picture(cut(name, 40)))
        axis.plot(np.arange(1, len(values) + 1), values.mean(axis=1), color=f"C{number % 10}", linewidth=1, alpha=0.6)
    axis.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(picture(cut(title, 70)), fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)
