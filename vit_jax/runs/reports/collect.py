"""Read runs from their workdirs, including runs that are still training."""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vit_jax.checkpoint import workdir as workdirs
from vit_jax.config.factory import flatten_config, steps_of
from vit_jax.config.hints import fits
from vit_jax.runs.sweeps.record import SweepRecord, load_record
from vit_jax.train.metrics import read_rows, seconds_of
from vit_jax.types import UserError

# States of sweep.json for runs that will not continue.
FINAL_STATES = ("failed", "stopped")

MetricMode = Literal["max", "min"]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A run; `config` maps dotted keys to values, without unset ones; `curves` maps each metric to its (step, value)."""

    name: str
    path: Path
    config: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    step: int
    steps: int
    seconds: float | None
    hardware: str
    commit: str
    sweep_state: str = ""

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    @property
    def state(self) -> str:
        """Return "finished", or the current step and whether the run failed or was stopped early there."""
        if self.finished:
            return "finished"
        prefix = f"{self.sweep_state} at " if self.sweep_state in FINAL_STATES else ""
        return f"{prefix}step {self.step:,} of {self.steps:,}"

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds / 3600

    def last(self, metric: str) -> float | None:
        return self.curves[metric][-1][1] if metric in self.curves else None

    def best(self, metric: str, mode: MetricMode) -> tuple[int, float] | None:
        """Return (step, value) of the first best value of a metric."""
        if metric not in self.curves:
            return None
        return (max if mode == "max" else min)(self.curves[metric], key=lambda point: point[1])


class NoRunsError(UserError):
    """The folders contain no runs, or none yet."""


# Previously read runs, by workdir, with the times and sizes of their files.
RunCache = dict[Path, tuple[tuple[int, ...], RunResult]]


def collect_runs(folders: Sequence[str | Path], cache: RunCache | None = None) -> tuple[list[RunResult], list[str]]:
    """Return the runs in and below folders, sorted by name, and a reason for each workdir that cannot be read.

    Runs in `cache` whose files have not changed are not read again. Raises UserError if a folder is missing, and NoRunsError
    if there is no run.
    """
    cache = {} if cache is None else cache
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; expected workdirs, or folders that contain workdirs.")
    broken: list[str] = []
    found: dict[Path, tuple[Path, Path]] = {}
    for root in roots:
        for path in find_workdirs(root, broken):
            found.setdefault(path.resolve(), (root, path))
    names = run_labels(list(found.values()))
    sweeps = {folder: find_sweep(folder) for folder in {path.parent for _, path in found.values()}}
    states = {folder / run.name: run.state for folder, sweep in sweeps.items() if sweep for run in sweep.runs}
    runs = []
    for name, (_, path) in zip(names, found.values(), strict=True):
        try:
            runs.append(dataclasses.replace(_read_cached(path, cache), name=name, sweep_state=states.get(path, "")))
        except UserError as error:
            broken.append(str(error))
    if not runs:
        reasons = "".join(f"\n  {reason}" for reason in broken[:5])
        raise NoRunsError(
            f"No runs in {', '.join(map(str, roots))}; expected workdirs with config.json and metrics.jsonl, as created by "
            f"`python -m vit_jax.main --workdir=DIR`.{reasons}"
        )
    return sorted(runs, key=lambda run: run.name), broken


def find_workdirs(root: Path, broken: list[str]) -> list[Path]:
    """Return the workdirs in and below a folder; append folders that cannot be read to `broken`."""
    found = []
    for folder, subfolders, files in os.walk(
        root, onerror=lambda error: broken.append(f"{error.filename}: {error.strerror}")
    ):
        if {"config.json", "metrics.jsonl"} <= set(files):
            found.append(Path(folder))
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "checkpoints")
    return found


def run_labels(places: Sequence[tuple[Path, Path]]) -> list[str]:
    """Return unique names for workdirs, given as (root, workdir): relative paths, prefixed by the root if necessary."""
    short = [path.relative_to(root).as_posix().strip(".") or root.resolve().name for root, path in places]
    prefixed = [
        f"{root.resolve().name}/{name}" if path != root else str(path)
        for name, (root, path) in zip(short, places, strict=True)
    ]
    for labels in (short, prefixed):
        if max(Counter(labels).values(), default=1) == 1:
            return labels
    return [str(path) for _, path in places]


def find_sweep(folder: Path) -> SweepRecord | None:
    """Return the record of a sweep folder, if there is a valid one."""
    try:
        return load_record(folder)
    except UserError:
        return None


def _read_cached(path: Path, cache: RunCache) -> RunResult:
    try:
        stats = [(path / file).stat() for file in ("config.json", "metrics.jsonl")]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    version = tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size))
    if path not in cache or cache[path][0] != version:
        cache[path] = version, read_run(path, path.name)
    return cache[path][1]


def read_run(path: Path, name: str) -> RunResult:
    """Read the run of a workdir; raises UserError if its files do not describe a run."""
    record = workdirs.read(path)
    config, data = record["config"], record["data"]
    length = {key: config.get(key) for key in ("steps", "epochs", "batch_size")}
    try:
        rows = read_rows(path / "metrics.jsonl")
        steps = steps_of(length, data["num_examples"]) if fits([*length.values()], list[float | None]) else 0
    except (OSError, KeyError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    if steps < 1:
        raise UserError(f"{path / 'config.json'} has {length}; expected steps, or epochs and batch_size, as numbers.")
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            # Like kinds.fits for floats, but fast enough for millions of values.
            if type(value) in (int, float) and abs(value) <= sys.float_info.max and key not in ("step", "seconds"):
                curves.setdefault(key, []).append((row["step"], float(value)))
    attempts = [record, *(change for change in record["changes"] if isinstance(change, dict))]
    return RunResult(
        name=name,
        path=path,
        config={key: value for key, value in flatten_config(config).items() if value is not None},
        curves=curves,
        step=rows[-1]["step"] if rows else 0,
        steps=steps,
        seconds=seconds_of(rows),
        hardware=join_distinct(attempt.get("hardware") for attempt in attempts),
        commit=join_distinct(attempt.get("git_commit") for attempt in attempts),
    )


def join_distinct(values: Iterable[Any]) -> str:
    """Join the distinct non-empty strings among the values, in order, with ", then "."""
    return ", then ".join(dict.fromkeys(value for value in values if isinstance(value, str) and value))


def equal_values(one: Any, other: Any) -> bool:
    """Return whether two config values are equal; 1 equals 1.0, but not True."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def distinct_keys(runs: Sequence[RunResult]) -> list[str]:
    """Return the config keys with values that differ between runs."""
    keys = sorted({key for run in runs for key in run.config})
    return [key for key in keys if any(not equal_values(run.config.get(key), runs[0].config.get(key)) for run in runs)]


def format_value(value: Any) -> str:
    """Format a config value for a table: strings unchanged, "" for None, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
