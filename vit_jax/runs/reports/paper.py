"""The published numbers of a paper's table, and ours beside them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.config.factory import flatten, near
from vit_jax.config.kinds import fits, hint_name
from vit_jax.runs.reports.groups import Statistics, group
from vit_jax.runs.reports.runs import Mode, Run, same, told
from vit_jax.types import UserError

FILE = "paper.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: `where` are dotted config keys with the values that runs of it hold, None where they hold none."""

    name: str
    where: Mapping[str, Any]
    published: float | None = None
    spread: float | None = None
    note: str = ""

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a run with such values of dotted keys, those that are unset left out, is of this line."""
        return all(same(config.get(key), value) for key, value in flatten(self.where).items())


@dataclasses.dataclass(frozen=True)
class Paper:
    """A table: published numbers of a metric, in per cent where the unit is "%", and where they stand."""

    title: str
    source: str
    metric: str
    rows: tuple[Row, ...]
    unit: str = ""
    mode: Mode = "max"

    @property
    def scale(self) -> float:
        """What a logged value is multiplied by to be in the table's unit."""
        return 100.0 if self.unit == "%" else 1.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A line of a paper's table with our runs of it, if any; ours is in the table's unit.

    state: `finished`, how far the unfinished runs are, or `not run`. Hours are the mean of a run's.
    """

    row: Row
    ours: Statistics | None
    state: str
    hardware: str
    hours: float | None
    commit: str

    @property
    def difference(self) -> float | None:
        """Ours minus the published."""
        return None if self.ours is None or self.row.published is None else self.ours.mean - self.row.published


def read(place: str | Path) -> Paper:
    """The table of a study's folder, or of a file; raises UserError where there is none, or where it is malformed."""
    path = Path(place) / FILE if Path(place).is_dir() else Path(place)
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--paper={place}: no {path}; expected a folder with {FILE}, such as those in experiments/."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--paper={place}: {path} cannot be read ({error}); expected JSON.") from None
    values = checked(Paper, given, str(path))
    rows = tuple(Row(**checked(Row, row, f"{path}, rows[{index}]")) for index, row in enumerate(values["rows"]))
    return Paper(**(values | {"rows": rows}))


def checked(kind: type, given: Any, where: str) -> dict[str, Any]:
    """The fields of a dataclass in an object of JSON; raises UserError where they are others or of other kinds."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not isinstance(given, dict) or not needed <= set(given):
        raise UserError(f"{where}: expected an object with {', '.join(sorted(needed))}.")
    for key, value in given.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}{near(key, fields)}")
        hint: Any = {"rows": list, "where": dict}.get(key, fields[key].type)
        if not fits(value, hint):
            raise UserError(f"{where}: {key} is {value!r}; expected {hint_name(hint)}.")
    return given


def compare(paper: Paper, runs: Sequence[Run]) -> list[Comparison]:
    """Ours beside each line of the table; where our runs of a line differ in more than seeds, those with the best mean."""
    return [compare_row(paper, row, [run for run in runs if row.matches(run.config)]) for row in paper.rows]


def compare_row(paper: Paper, row: Row, runs: Sequence[Run]) -> Comparison:
    """See compare; the runs are those of the line."""
    measured = [(stats, one) for one in group(runs) if (stats := one.statistics(paper.metric)) is not None]
    if not measured:
        states = dict.fromkeys(f"without {paper.metric}" if run.finished else run.state for run in runs)
        return Comparison(row, None, "; ".join(states) or "not run", *cost(runs))
    stats, best = max(measured, key=lambda pair: pair[0].mean if paper.mode == "max" else -pair[0].mean)
    remarks = [f"the best of {len(measured)} settings: {best.name}"] if len(measured) > 1 else []
    remarks += [f"{missing} more unfinished"] if (missing := sum(not run.finished for run in best.runs)) else []
    return Comparison(row, scaled(stats, paper.scale), "; ".join(["finished", *remarks]), *cost(best.runs))


def scaled(stats: Statistics, factor: float) -> Statistics:
    """Statistics of numbers that are all multiplied by a factor."""
    spread = None if stats.spread is None else factor * stats.spread
    confidence = None if stats.confidence is None else factor * stats.confidence
    return Statistics(factor * stats.mean, spread, confidence, stats.n)


def cost(runs: Sequence[Run]) -> tuple[str, float | None, str]:
    """The hardware, the mean hours and the commit of runs."""
    hours = [run.hours for run in runs if run.hours is not None]
    return (
        told(run.hardware for run in runs),
        sum(hours) / len(hours) if hours else None,
        told(run.commit for run in runs),
    )
