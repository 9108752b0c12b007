"""Store the record of a sweep, DIR/sweep.json: its runs and their states."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from vit_jax.checkpoint.workdir import write_text
from vit_jax.config.factory import first, quoted
from vit_jax.runs.sweeps.space import Sweep, run_names
from vit_jax.types import UserError

RunState = Literal["waiting", "running", "finished", "failed", "stopped"]


@dataclasses.dataclass
class SweepRun:
    """A run with its settings; `attempts` counts its starts; state "stopped" means that a search stopped it early."""

    name: str
    settings: dict[str, Any]
    state: RunState = "waiting"
    attempts: int = 0
    reason: str = ""


@dataclasses.dataclass
class SweepRecord:
    """A sweep file with its argument, the values of its Sweep, the --config.KEY=VALUE flags, and the runs."""

    file: str
    arg: str
    config: str
    overrides: list[list[str]]
    metric: str | None
    mode: str
    runs: list[SweepRun]

    def write(self, folder: Path) -> None:
        write_text(folder / "sweep.json", json.dumps(dataclasses.asdict(self), indent=1))


def load_record(folder: Path) -> SweepRecord | None:
    """Load the record of a folder, or return None if there is none."""
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["runs"] = [SweepRun(**run) for run in content["runs"]]
        record = SweepRecord(**content)
        if record.mode not in ("max", "min"):
            raise ValueError(f"mode is {record.mode!r}")
        if not all(run.state in get_args(RunState) and isinstance(run.settings, dict) for run in record.runs):
            raise ValueError("a run has an unknown state or no settings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} is not the record of a sweep ({error}); restore it, or use a new --out.") from None
    return record


def update_record(folder: Path, argument: str, sweep: Sweep, overrides: Sequence[tuple[str, str]]) -> SweepRecord:
    """Return the record of a sweep, keeping the states of existing runs, and print which runs were added or removed.

    Writes nothing. Raises UserError if the folder contains another sweep.
    """
    old = load_record(folder)
    known = [] if old is None else old.runs
    if old is not None:
        _check_same_sweep(folder, old, sweep, overrides)
    by_settings = {_settings_key(run.settings): run for run in known}
    names = run_names(sweep.runs, taken=[run.name for run in known])
    runs = [
        by_settings.get(_settings_key(settings)) or SweepRun(name, dict(settings))
        for name, settings in zip(names, sweep.runs, strict=True)
    ]
    file, _, arg = argument.partition(":")
    record = SweepRecord(file, arg, sweep.config, [list(pair) for pair in overrides], sweep.metric, sweep.mode, runs)
    if known and (new := [run.name for run in runs if run not in known]):
        print(f"{len(new)} runs were added since this sweep started: {' '.join(first(new, 5))}")
    if gone := [run.name for run in known if run not in runs]:
        print(f"{len(gone)} runs are no longer in the sweep; their folders remain: {' '.join(first(gone, 5))}")
    return record


def _check_same_sweep(folder: Path, old: SweepRecord, sweep: Sweep, overrides: Sequence[tuple[str, str]]) -> None:
    """Raise UserError listing the differences unless the sweeps differ only in added or removed runs."""
    before, now = {key: text for key, text in old.overrides}, dict(overrides)
    differ = [
        f"\n  --config.{key}: {before.get(key, 'not set')} in the folder, {now.get(key, 'not set')} now"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if old.config != sweep.config:
        differ.append(f"\n  config: {old.config} in the folder, {sweep.config} now")
    ours, theirs = ({_settings_key(s) for s in runs} for runs in (sweep.runs, [run.settings for run in old.runs]))
    if not ours & theirs:
        differ.append(
            f"\n  no run is the same: {quoted(old.runs[0].settings)} in the folder, {quoted(sweep.runs[0])} now"
        )
    if differ:
        raise UserError(
            f"--out={folder} contains another sweep, of {old.file}, with other values:{''.join(first(differ))}\n"
            "Use another --out, or the same sweep to resume it; runs may be added and removed."
        )


def _settings_key(settings: Mapping[str, Any]) -> str:
    """Return equal text for equal settings."""
    return json.dumps(settings, sort_keys=True)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create a folder and lock it for this process; raises UserError if another sweep has locked it."""
    if (folder / "config.json").exists():
        raise UserError(
            f"--out={folder} is the workdir of a run; use a new folder, or the folder of a sweep to resume."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "sweep.lock", "w")  # noqa: SIM115 (open until the context ends)
    except OSError as error:
        raise UserError(f"--out={folder} cannot be written: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out={folder}: another sweep is running there; stop it, or use another --out.") from None
        yield
