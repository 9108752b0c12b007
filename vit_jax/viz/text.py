"""Names from files and data in figures: they may be long, and contain anything."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# For every text that shows a name: a dollar sign is no formula.
PLAIN: dict[str, Any] = {"parse_math": False}


def shown(name: str, most: int = 40) -> str:
    """Return a name as a figure shows it: on one line, cut off, without what cannot be printed."""
    name = "".join(sign if sign.isprintable() else "�" for sign in name)
    return name if len(name) <= most else name[: most - 1] + "…"


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as a PNG file; signs that its font lacks are boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(path, dpi=dpi)
