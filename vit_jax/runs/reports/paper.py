"""Compare runs with the published numbers of a paper's table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.config.factory import flatten_config, near
from vit_jax.config.hints import fits, hint_name
from vit_jax.runs.reports.collect import MetricMode, RunResult, equal_values, join_distinct
from vit_jax.runs.reports.seed_groups import SeedStatistics, group_by_seed
from vit_jax.types import UserError

FILE = "paper.json"


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row of the table; `where` maps dotted config keys to the values of matching runs, None for unset keys."""

    name: str
    where: Mapping[str, Any]
    published: float | None = None
    spread: float | None = None
    note: str = ""

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Return whether a run's flattened config, without unset keys, belongs to this row."""
        return all(equal_values(config.get(key), value) for key, value in flatten_config(self.where).items())


@dataclasses.dataclass(frozen=True)
class Paper:
    """A table of published values of a metric, in percent if the unit is "%"."""

    title: str
    source: str
    metric: str
    rows: tuple[PaperRow, ...]
    unit: str = ""
    mode: MetricMode = "max"

    @property
    def scale(self) -> float:
        return 100.0 if self.unit == "%" else 1.0


@dataclasses.dataclass(frozen=True)
class RowComparison:
    """A row with our result, in the table's unit, if there is a result.

    state: "finished", the progress of unfinished runs, or "not run". hours: the mean over runs.
    """

    row: PaperRow
    ours: SeedStatistics | None
    state: str
    hardware: str
    hours: float | None
    commit: str

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.row.published is None else self.ours.mean - self.row.published


def read_paper(path: str | Path) -> Paper:
    """Read the table from a study's folder or a file; raises UserError if it is missing or malformed."""
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--paper={path}: {file} does not exist; expected a folder with {FILE}, such as those in experiments/."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--paper={path}: {file} cannot be read ({error}); expected JSON.") from None
    fields = _check_fields(Paper, content, str(file))
    rows = [PaperRow(**_check_fields(PaperRow, row, f"{file}, rows[{i}]")) for i, row in enumerate(fields["rows"])]
    return Paper(**(fields | {"rows": tuple(rows)}))


def _check_fields(kind: type, content: Any, where: str) -> dict[str, Any]:
    """Return a JSON object with keys and values that match the fields of a dataclass; raises UserError otherwise."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not isinstance(content, dict) or not required <= set(content):
        raise UserError(f"{where}: expected an object with {', '.join(sorted(required))}.")
    for key, value in content.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}{near(key, fields)}")
        hint: Any = {"rows": list, "where": dict}.get(key, fields[key].type)
        if not fits(value, hint):
            raise UserError(f"{where}: {key} is {value!r}; expected {hint_name(hint)}.")
    return content


def compare_with_paper(paper: Paper, runs: Sequence[RunResult]) -> list[RowComparison]:
    """Return a comparison for each row; if its runs differ in more than seeds, the settings with the best mean count."""
    return [_compare_row(paper, row, [run for run in runs if row.matches(run.config)]) for row in paper.rows]


def _compare_row(paper: Paper, row: PaperRow, runs: Sequence[RunResult]) -> RowComparison:
    groups = [(stats, group) for group in group_by_seed(runs) if (stats := group.statistics(paper.metric)) is not None]
    if not groups:
        states = dict.fromkeys(f"without {paper.metric}" if run.finished else run.state for run in runs)
        return RowComparison(row, None, "; ".join(states) or "not run", *_cost(runs))
    stats, best = max(groups, key=lambda pair: pair[0].mean if paper.mode == "max" else -pair[0].mean)
    remarks = [f"the best of {len(groups)} settings: {best.name}"] if len(groups) > 1 else []
    unfinished = sum(not run.finished for run in best.runs)
    remarks += [f"{unfinished} more unfinished"] if unfinished else []
    return RowComparison(row, stats.scaled(paper.scale), "; ".join(["finished", *remarks]), *_cost(best.runs))


def _cost(runs: Sequence[RunResult]) -> tuple[str, float | None, str]:
    """Return the hardware, the mean hours and the commit of runs."""
    hours = [run.hours for run in runs if run.hours is not None]
    hardware, commit = join_distinct(run.hardware for run in runs), join_distinct(run.commit for run in runs)
    return hardware, sum(hours) / len(hours) if hours else None, commit
