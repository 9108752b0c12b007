"""Runs as their workdirs tell of them, also while they train."""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vit_jax.checkpoint import workdir as workdirs
from vit_jax.config.factory import flatten, near, steps_of
from vit_jax.config.kinds import fits
from vit_jax.train.metrics import read_rows, seconds_of
from vit_jax.types import UserError

Mode = Literal["max", "min"]
# What sweep.json says of runs that do not go on.
GIVEN_UP = ("failed", "stopped")
LARGEST = sys.float_info.max
# The last words of metrics that are better when lower.
LOWER = ("loss", "error", "ece", "nll", "seconds", "data_wait")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run; `config` holds the values of its dotted keys, without those that are unset; curves are (step, value) by metric."""

    name: str
    path: Path
    config: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    step: int
    steps: int
    seconds: float | None
    hardware: str
    commit: str
    outcome: str = ""  # what became of it in its sweep

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.steps

    @property
    def state(self) -> str:
        """`finished`, or how far it is, and whether it failed there or was stopped by the search of a sweep."""
        if self.finished:
            return "finished"
        return (f"{self.outcome} at " if self.outcome in GIVEN_UP else "") + f"step {self.step:,} of {self.steps:,}"

    @property
    def hours(self) -> float | None:
        """Hours of training, evaluating and compiling, where they were kept."""
        return None if self.seconds is None else self.seconds / 3600

    def last(self, metric: str) -> float | None:
        """The last value of a metric, as it stands at the end of the run."""
        return self.curves[metric][-1][1] if metric in self.curves else None

    def best(self, metric: str, mode: Mode) -> tuple[int, float] | None:
        """The best value of a metric and the first step that had it."""
        if metric not in self.curves:
            return None
        return (max if mode == "max" else min)(self.curves[metric], key=lambda point: point[1])


class NoRunsError(UserError):
    """Folders that hold no runs, or none yet."""


# What was read before, by workdir, with the states of its files then.
Known = dict[Path, tuple[tuple[int, ...], Run]]


def collect(folders: Sequence[str | Path], known: Known | None = None) -> tuple[list[Run], list[str]]:
    """The runs in and under folders, by name, and for each workdir that cannot be read the reason.

    What `known` has of files that have not changed is not read again. Raises UserError where a folder is missing, and
    NoRunsError where none holds a run.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is no folder; expected workdirs, or folders that contain them.")
    broken: list[str] = []
    found: dict[Path, tuple[Path, Path]] = {}
    for root in roots:
        for path in find(root, broken):
            found.setdefault(path.resolve(), (root, path))
    names = names_of(list(found.values()))
    sweeps = {path.parent: read_sweep(path.parent) for _, path in found.values()}
    runs = []
    for name, (_, path) in zip(names, found.values(), strict=True):
        try:
            run = read_changed(path, {} if known is None else known)
            outcome = sweeps[path.parent].get("runs", {}).get(path.name, "")
            runs.append(dataclasses.replace(run, name=name, outcome=outcome))
        except UserError as error:
            broken.append(str(error))
    if not runs:
        reasons = "".join(f"\n  {reason}" for reason in broken[:5])
        raise NoRunsError(
            f"No runs in {', '.join(map(str, roots))}; expected workdirs with config.json and metrics.jsonl, as "
            f"`python -m vit_jax.main --workdir=DIR` makes them.{reasons}"
        )
    return sorted(runs, key=lambda run: run.name), broken


def find(root: Path, broken: list[str]) -> list[Path]:
    """The workdirs in and under a folder; adds what cannot be looked into to `broken`."""
    found = []
    for place, folders, files in os.walk(
        root, onerror=lambda error: broken.append(f"{error.filename}: {error.strerror}")
    ):
        if {"config.json", "metrics.jsonl"} <= set(files):
            found.append(Path(place))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "checkpoints")
    return found


def names_of(places: Sequence[tuple[Path, Path]]) -> list[str]:
    """Names for workdirs by (folder, workdir): the path in the folder, with the folder's name where that is not enough."""
    short = [path.relative_to(root).as_posix().strip(".") or root.resolve().name for root, path in places]
    longer = [
        f"{root.resolve().name}/{name}" if path != root else str(path)
        for name, (root, path) in zip(short, places, strict=True)
    ]
    for names in (short, longer):
        if max(Counter(names).values(), default=1) == 1:
            return names
    return [str(path) for _, path in places]


def read_sweep(folder: Path) -> dict[str, Any]:
    """What sweep.json says, if the folder is that of a sweep: its metric and mode, and the states of its runs by name."""
    try:
        record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        metric, mode = record["metric"], record["mode"]
        states = {str(run["name"]): str(run["state"]) for run in record["runs"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    asked = {"metric": metric, "mode": mode} if isinstance(metric, str) and mode in ("max", "min") else {}
    return {"runs": states, **asked}


def read_changed(path: Path, known: Known) -> Run:
    """See collect and read."""
    try:
        states = [(path / file).stat() for file in ("config.json", "metrics.jsonl")]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    stamp = tuple(number for state in states for number in (state.st_mtime_ns, state.st_size))
    if path not in known or known[path][0] != stamp:
        known[path] = stamp, read(path, path.name)
    return known[path][1]


def read(path: Path, name: str) -> Run:
    """The run of a workdir; raises UserError where its files are not those of a run."""
    record = workdirs.read(path)
    config, data = record["config"], record["data"]
    length = {key: config.get(key) for key in ("steps", "epochs", "batch_size")}
    try:
        rows = read_rows(path / "metrics.jsonl")
        steps = steps_of(length, data["num_examples"]) if fits([*length.values()], list[float | None]) else 0
    except (OSError, KeyError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    if steps < 1:
        raise UserError(f"{path / 'config.json'} has {length}; expected the length of a run.")
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            # As kinds.fits for a float, a million times.
            if type(value) in (int, float) and -LARGEST <= value <= LARGEST and key not in ("step", "seconds"):
                curves.setdefault(key, []).append((row["step"], float(value)))
    attempts = [record, *(change for change in record["changes"] if isinstance(change, dict))]
    return Run(
        name=name,
        path=path,
        config={key: value for key, value in flatten(config).items() if value is not None},
        curves=curves,
        step=rows[-1]["step"] if rows else 0,
        steps=steps,
        seconds=seconds_of(rows),
        hardware=told(attempt.get("hardware") for attempt in attempts),
        commit=told(attempt.get("git_commit") for attempt in attempts),
    )


def told(values: Iterable[Any]) -> str:
    """The different texts among the values that the attempts of a run recorded, in their order."""
    return ", then ".join(dict.fromkeys(value for value in values if isinstance(value, str) and value))


def same(one: Any, other: Any) -> bool:
    """Whether two values of a config are the same; True is not 1, but 1.0 is."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys whose values are not the same in all the runs."""
    keys = sorted({key for run in runs for key in run.config})
    return [key for key in keys if any(not same(run.config.get(key), runs[0].config.get(key)) for run in runs)]


def as_text(value: Any) -> str:
    """A value of a config as a table shows it: text as it is, nothing for None, other values as in JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def mode_of(metric: str) -> Mode:
    """Whether more of a metric is better, by its name."""
    return "min" if metric.split("/")[-1].endswith(LOWER) else "max"


def choose_metric(runs: Sequence[Run], wanted: str | None) -> str:
    """The metric to compare by: the wanted one, test/accuracy, another accuracy, another evaluation's, or the loss.

    Raises UserError where no run has the wanted one.
    """
    known = sorted({metric for run in runs for metric in run.curves})
    if wanted is not None:
        if known and wanted not in known:
            raise UserError(f"--metric={wanted}: no run has logged it{near(wanted, known)}")
        return wanted
    for candidates in (
        ["test/accuracy"],
        [name for name in known if name.endswith("/accuracy")],
        [name for name in known if name.endswith("/loss")],
    ):
        for name in candidates:
            if name in known:
                return name
    return "loss"
