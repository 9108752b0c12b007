"""The record of a sweep, DIR/sweep.json: its runs, and what became of each so far."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from vit_jax.checkpoint.workdir import write_text
from vit_jax.config.factory import first, shown
from vit_jax.runs.sweeps.names import run_names
from vit_jax.runs.sweeps.space import Sweep
from vit_jax.types import UserError

State = Literal["waiting", "running", "finished", "failed", "stopped"]


@dataclasses.dataclass
class Run:
    """A run: what it changes of the config, and how often it was started; `reason` says why it failed.

    "stopped" is one that a search did not take to its end.
    """

    name: str
    settings: dict[str, Any]
    state: State = "waiting"
    attempts: int = 0
    reason: str = ""


@dataclasses.dataclass
class Record:
    """A sweep file with its argument, the Sweep that it gave, the --config.KEY=VALUE of the command, and the runs."""

    file: str
    arg: str
    config: str
    overrides: list[list[str]]
    metric: str | None
    mode: str
    runs: list[Run]

    def write(self, folder: Path) -> None:
        """Replaces the file at once."""
        write_text(folder / "sweep.json", json.dumps(dataclasses.asdict(self), indent=1))


def read(folder: Path) -> Record | None:
    """The record in a folder, if there is one."""
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["runs"] = [Run(**run) for run in content["runs"]]
        record = Record(**content)
        if not all(run.state in get_args(State) and isinstance(run.settings, dict) for run in record.runs):
            raise ValueError("its runs are not as they were written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} is no record of a sweep ({error}); restore it, or give a new --out.") from None
    return record


def begin(folder: Path, argument: str, sweep: Sweep, overrides: Sequence[tuple[str, str]]) -> Record:
    """The record to go on with in a folder; nothing is written, and what runs came or went is printed.

    A run that the folder knows keeps its name. Raises UserError where the folder holds another sweep.
    """
    old = read(folder)
    known = [] if old is None else old.runs
    if old is not None:
        check_same(folder, old, sweep, overrides)
    by_settings = {settings_text(run.settings): run for run in known}
    names = run_names(sweep.runs, taken=[run.name for run in known])
    runs = [
        by_settings.get(settings_text(settings)) or Run(name, dict(settings))
        for name, settings in zip(names, sweep.runs, strict=True)
    ]
    file, _, arg = argument.partition(":")
    record = Record(file, arg, sweep.config, [list(pair) for pair in overrides], sweep.metric, sweep.mode, runs)
    if known and (new := [run.name for run in runs if run not in known]):
        print(f"{len(new)} runs were added since this sweep began: {' '.join(first(new, 5))}")
    if gone := [run.name for run in known if run not in runs]:
        print(f"{len(gone)} runs are no longer in the sweep, their folders stay: {' '.join(first(gone, 5))}")
    return record


def check_same(folder: Path, old: Record, sweep: Sweep, overrides: Sequence[tuple[str, str]]) -> None:
    """Raises UserError, which says what differs, where a folder holds another sweep than one with runs more or fewer."""
    there, here = {key: text for key, text in old.overrides}, dict(overrides)
    differ = [
        f"\n  --config.{key}: {there.get(key, 'not given')} there, {here.get(key, 'not given')} here"
        for key in sorted(there | here)
        if there.get(key) != here.get(key)
    ]
    if old.config != sweep.config:
        differ.append(f"\n  config: {old.config} there, {sweep.config} here")
    ours, theirs = ({settings_text(s) for s in runs} for runs in (sweep.runs, [run.settings for run in old.runs]))
    if not ours & theirs:
        differ.append(f"\n  no run is the same: {shown(old.runs[0].settings)} there, {shown(sweep.runs[0])} here")
    if differ:
        raise UserError(
            f"--out={folder} holds another sweep, of {old.file}; they differ:{''.join(first(differ))}\n"
            "Give another --out, or the same sweep to go on; runs may be added and removed."
        )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as text that is the same for the same settings."""
    return json.dumps(settings, sort_keys=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes a folder and holds it for this process; raises UserError where another sweep does."""
    if (folder / "config.json").exists():
        raise UserError(f"--out={folder} is the workdir of a run; give a new folder, or that of a sweep to go on with.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "sweep.lock", "w")  # noqa: SIM115 (to the end of the context)
    except OSError as error:
        raise UserError(f"--out={folder} cannot be written: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out={folder}: another sweep runs there; stop it, or give another --out.") from None
        yield
