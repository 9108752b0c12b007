"""Group runs that differ only in their seed, and compute statistics over seeds."""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

from vit_jax.config.factory import short_names
from vit_jax.runs.reports.collect import RunResult, distinct_keys, format_value

MAX_SETTINGS = 80  # characters of settings in a group's name
SEED = re.compile(r"[,_\- ]*seed[=_-]?\d+")


@dataclasses.dataclass(frozen=True)
class SeedStatistics:
    """Mean, sample standard deviation and half-width of the mean's 95 % confidence interval (Student's t) of n values.

    The last two are None for n = 1.
    """

    mean: float
    spread: float | None
    confidence: float | None
    n: int

    def scaled(self, factor: float) -> "SeedStatistics":
        """Return the statistics of the values multiplied by a factor."""
        spread, confidence = (None if x is None else factor * x for x in (self.spread, self.confidence))
        return SeedStatistics(factor * self.mean, spread, confidence, self.n)


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Runs with configs that differ only in `seed`."""

    name: str
    runs: tuple[RunResult, ...]

    def statistics(self, metric: str) -> SeedStatistics | None:
        """Return statistics of the last value of a metric over finished runs, or None if there are none."""
        last = [run.last(metric) for run in self.runs if run.finished]
        return seed_statistics([value for value in last if value is not None])


def seed_statistics(values: Sequence[float]) -> SeedStatistics | None:
    """Return statistics of values, or None if there are none."""
    n = len(values)
    if n == 0:
        return None
    if n == 1:
        return SeedStatistics(values[0], None, None, 1)
    spread = statistics.stdev(values)
    return SeedStatistics(statistics.fmean(values), spread, float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n), n)


def group_by_seed(runs: Sequence[RunResult]) -> list[SeedGroup]:
    """Return the groups of runs, ordered by their first runs."""
    members: dict[str, list[RunResult]] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key != "seed"}
        members.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    names = group_names(list(members.values()), [key for key in distinct_keys(runs) if key != "seed"])
    return [SeedGroup(name, tuple(group)) for name, group in zip(names, members.values(), strict=True)]


def group_names(groups: Sequence[Sequence[RunResult]], keys: Sequence[str]) -> list[str]:
    """Return names for groups: their distinct settings, or the common part of their runs' names."""
    short = short_names(keys)
    settings = [
        ", ".join(f"{short[key]}={format_value(run.config[key])}" for key in keys if key in run.config)
        for run, *_ in groups
    ]
    if all(0 < len(text) <= MAX_SETTINGS for text in settings) and len(set(settings)) == len(settings):
        return settings
    common = [SEED.sub("", runs[0].name) if len(runs) > 1 else runs[0].name for runs in groups]
    if all(common) and len(set(common)) == len(common):
        return common
    return [runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "") for runs in groups]
