"""Runs that differ in their seed alone, and what can be said of them together."""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

from vit_jax.config.factory import short_names
from vit_jax.runs.reports.runs import Run, as_text, differing

# A group's name shows its settings up to this length.
LONGEST = 80
SEED = re.compile(r"[,_\- ]*seed[=_-]?\d+")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The mean of n numbers, their sample standard deviation, and half the width of the mean's 95 % confidence interval.

    The interval is Student's t with n - 1 degrees of freedom; it and the deviation are None for one number.
    """

    mean: float
    spread: float | None
    confidence: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs whose configs differ in `seed` alone."""

    name: str
    runs: tuple[Run, ...]

    def statistics(self, metric: str) -> Statistics | None:
        """Of the metric at the end of the finished runs; None where there is none yet."""
        return describe([value for run in self.runs if run.finished and (value := run.last(metric)) is not None])


def describe(values: Sequence[float]) -> Statistics | None:
    """The statistics of some numbers; None where there are none."""
    n = len(values)
    if n == 0:
        return None
    if n == 1:
        return Statistics(values[0], None, None, 1)
    spread = statistics.stdev(values)
    return Statistics(statistics.fmean(values), spread, float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n), n)


def group(runs: Sequence[Run]) -> list[Group]:
    """The groups of runs, in the order of their first ones."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key != "seed"}
        members.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    names = names_of(list(members.values()), [key for key in differing(runs) if key != "seed"])
    return [Group(name, tuple(several)) for name, several in zip(names, members.values(), strict=True)]


def names_of(groups: Sequence[Sequence[Run]], keys: Sequence[str]) -> list[str]:
    """Names for groups: the settings in which they differ, or what the names of their runs have in common."""
    short = short_names(keys)
    settings = [
        ", ".join(f"{short[key]}={as_text(run.config[key])}" for key in keys if key in run.config) for run, *_ in groups
    ]
    if all(0 < len(text) <= LONGEST for text in settings) and len(set(settings)) == len(settings):
        return settings
    common = [SEED.sub("", runs[0].name) if len(runs) > 1 else runs[0].name for runs in groups]
    if all(common) and len(set(common)) == len(common):
        return common
    return [runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "") for runs in groups]
