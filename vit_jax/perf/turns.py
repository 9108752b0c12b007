"""Sides timed in turns, so that what else the machine does falls on all of them alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence

# Does so many steps, and gives the seconds that they took.
Side = Callable[[int], float]


def in_turns(sides: Mapping[str, Side], steps: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of a step, of each side in each round; every other round goes through the sides backwards."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name](steps) / steps)
    return found


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """How many times as fast the first side is as the second: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(of, to, strict=True))
