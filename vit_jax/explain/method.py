"""Define explanation methods: checks before compilation, arrays, and figures of them."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.types import UserError
from vit_jax.viz.panels import Panel, draw_panels

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Look:
    """The result of a method for one network: arrays for the images as preprocessed for this network.

    names: of the images. targets: the explained class of each image; None without classes.
    """

    network: Network
    names: Sequence[str]
    images: ByteImages
    targets: Targets | None
    arrays: Arrays

    def target(self, index: int) -> str:
        """The name of the class explained in an image, or ""."""
        return "" if self.targets is None else self.network.loaded.class_names[self.targets[index]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure and the function that draws it into a PNG file."""

    title: str
    draw: Callable[[Path], None]


class Method(abc.ABC):
    """Inspects a network; arguments are set by --method.KEY.

    title: printed above its figures. of_class: whether it explains one class of each image.
    """

    title: str
    of_class: bool = False

    @abc.abstractmethod
    def check(self, network: Network) -> None:
        """Raise UserError if the method does not apply to a network; compiles nothing."""

    @abc.abstractmethod
    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """Return named arrays; targets are given if there are classes."""

    @abc.abstractmethod
    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """Return the figures that compare the networks, all for the same images."""


class HeatMap(Method):
    """A method that gives every image one map.

    unit: the quantity that the map shows. signed: it also has negative values, so that its colours are symmetric about
    zero. importance: it shows which places matter to the output, so that it can be scored by deletion and insertion.
    """

    unit: str
    signed: bool = False
    importance: bool = True

    @abc.abstractmethod
    def maps(self, network: Network, images: ByteImages, targets: Targets | None) -> np.ndarray:
        """Return the maps [b, rows, cols], with any number of rows and columns."""

    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """Return {"map": [b, rows, cols]}."""
        return {"map": self.maps(network, images, targets)}

    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """Return one figure per image, with a row for each network; see Method."""
        return [
            panels(self.title, looks, index, [self._row(look, index) for look in looks])
            for index in range(len(looks[0].names))
        ]

    def _row(self, look: Look, index: int) -> list[Panel]:
        found, image = look.arrays["map"][index], look.images[index]
        placed = look.network.to_pixels(found[None])[0]
        high = float(np.abs(found).max()) or 1.0
        colors = {"limits": (-high, high), "colors": "RdBu_r"} if self.signed else {"limits": (0.0, high)}
        target = look.target(index) if self.of_class else ""
        return [
            Panel(short(look.network.name), image=image),
            Panel(f"for {target!r}" if target else self.title, image=image, map=placed, **colors),
            Panel("", map=found, bar=self.unit, **colors),
        ]


def panels(title: str, looks: Sequence[Look], index: int | None, rows: Sequence[Sequence[Panel]]) -> Figure:
    """Return a figure with rows of panels, for one image if an index is given."""
    title = title if index is None else f"{title}: {short(looks[0].names[index], 60)}"
    return Figure(title, functools.partial(draw_panels, rows, title))


def short(name: str, most: int = 40) -> str:
    """Return the end of a long name or path."""
    return name if len(name) <= most else "…" + name[1 - most :]


def check_point(point: tuple[float, float]) -> None:
    """Raise UserError unless a point is (row, column) as fractions of the height and width."""
    if not all(0 <= share <= 1 for share in point):
        raise UserError(f"--method.point={point}: expected row and column as shares from 0 to 1, such as 0.5,0.5.")
