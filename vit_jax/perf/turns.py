"""Time sides in turns, so that other load on the machine affects them alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence

# Runs a number of steps and returns their seconds.
Side = Callable[[int], float]


def in_turns(sides: Mapping[str, Side], steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds per step for each side and round; every other round runs the sides in reverse order."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name](steps) / steps)
    return found


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the speed of the first side relative to the second: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(of, to, strict=True))
