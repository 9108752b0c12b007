"""Runs and models on object stores: a run works in a folder here, which is carried to its place as it grows."""

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from etils import epath

from vit_jax import distributed as processes
from vit_jax import stores
from vit_jax.checkpoint.saver import COMPLETE, steps_in
from vit_jax.pretrained.reference import SUFFIXES
from vit_jax.types import UserError

# Seconds between two looks for what is new.
SECONDS = 15.0
# What says how runs go.
RECORDS = ("config.json", "metrics.jsonl")


class Workdir:
    """Where a run works: `path`, a folder here, and `checkpoints`, where orbax writes. `place` is what the user named."""

    def __init__(self, place: str | Path):
        self.place = str(place)
        self.path = Path(place)
        self.checkpoints: os.PathLike[str] = self.path / "checkpoints"

    def push(self) -> None:
        """Brings to the place what is new here."""

    def shown(self, path: os.PathLike[str]) -> str:
        """A path in it as the user knows it."""
        return str(path)


class Mirror(Workdir):
    """A workdir on an object store, of which a copy lies here.

    On gs:// orbax itself writes the checkpoints, each process its shards; on s3:// it writes them here and they are sent when
    they are complete. A checkpoint of either counts once the file COMPLETE, which is written last, lies in it.
    """

    def __init__(self, place: str):
        self.place = place.rstrip("/")
        self._is_native = place.startswith("gs:")
        if not self._is_native and jax.process_count() > 1:
            raise UserError(
                f"--workdir={place}: {jax.process_count()} processes cannot write checkpoints to s3:// together; give a gs:// "
                "place, or a folder that all of them share."
            )
        found = stores.entries(place)
        if "" in found:
            raise UserError(f"--workdir={place} is a file; give a new folder, or that of a run to resume.")
        self.path = stores.own_folder(place, f"process {jax.process_index()}")
        self.checkpoints = epath.Path(f"{self.place}/checkpoints") if self._is_native else self.path / "checkpoints"
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._complete = complete_steps(found)
        self._fetch(found)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _fetch(self, found: Iterable[str]) -> None:
        """Copies what a run goes on from."""
        files = [name for name in found if not name.startswith("checkpoints/")]
        if "config.json" in files:
            for step in self._complete:
                (self.path / "checkpoints" / str(step)).mkdir(parents=True)
            parts = [name for name in found if re.match(r"checkpoints/\d+/", name) and not self._is_native]
            whole = [name for name in parts if int(name.split("/")[1]) in self._complete]
            stores.fetch(self.place, [*files, *whole], self.path)
        elif files:  # no run: a sign of that is enough
            (self.path / Path(files[0]).parts[0]).touch()
        self._sent = self._files()

    def _files(self) -> dict[str, tuple[int, int]]:
        """The files outside the checkpoints, each with what tells whether it has changed."""
        found = {}
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if name != "checkpoints"]
            for path in (Path(folder) / name for name in names if not name.endswith(".partial")):
                found[path.relative_to(self.path).as_posix()] = (path.stat().st_mtime_ns, path.stat().st_size)
        return found

    def push(self) -> None:
        if not processes.is_first():
            return
        with self._lock:
            # In this order: the rows of metrics.jsonl up to a checkpoint come before it.
            here = [] if self._is_native else steps_in(self.path / "checkpoints")
            files = self._files()
            for name in files:
                if files[name] != self._sent.get(name):
                    stores.write(f"{self.place}/{name}", (self.path / name).read_bytes())
            self._sent = files
            for step in here:
                if step not in self._complete:
                    self._send_checkpoint(step)
            for step in sorted(set(self._complete) - set(here)) if here else ():
                self._remove_checkpoint(step)

    def _send_checkpoint(self, step: int) -> None:
        folder, place = self.path / "checkpoints" / str(step), f"{self.place}/checkpoints/{step}"
        stores.remove(place, stores.entries(place))  # what a kill left half-written
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        stores.send(folder, [name for name in names if name != COMPLETE], place)
        stores.write(f"{place}/{COMPLETE}", b"")
        self._complete.append(step)

    def _remove_checkpoint(self, step: int) -> None:
        place = f"{self.place}/checkpoints/{step}"
        names = list(stores.entries(place))
        stores.remove(place, sorted(names, key=lambda name: name != COMPLETE))  # which no longer counts from then on
        self._complete.remove(step)

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            with contextlib.suppress(UserError, FileNotFoundError):  # the next time, or when something must be there
                self.push()

    def close(self) -> None:
        """Ends the watch, and removes the copy."""
        self._ended.set()
        self._thread.join()
        shutil.rmtree(self.path, ignore_errors=True)

    def shown(self, path: os.PathLike[str]) -> str:
        return str(path).replace(str(self.path), self.place, 1)


@contextlib.contextmanager
def opened(place: str | Path) -> Iterator[Workdir]:
    """The workdir of a run; at the end of the context, however that comes, all of it is in its place."""
    if not stores.is_remote(place):
        yield Workdir(place)
        return
    mirror = Mirror(str(place))
    try:
        with stores.told_as(mirror.path, mirror.place):
            yield mirror
    except BaseException:
        with contextlib.suppress(UserError):
            mirror.push()
        raise
    else:
        mirror.push()
    finally:
        mirror.close()


def complete_steps(names: Iterable[str]) -> list[int]:
    """The steps of the complete checkpoints among the objects of a workdir, in order."""
    found = (re.fullmatch(rf"checkpoints/(\d+)/{COMPLETE}", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


@contextlib.contextmanager
def fetched(place: str | Path, step: int | None = None) -> Iterator[Path]:
    """The path of a model; of one on a store that of a copy, which is gone after the context.

    Of a run only config.json and the checkpoint of `step`, or the last, is copied; of the others only the steps are seen.
    """
    if not stores.is_remote(place):
        yield Path(place)
        return
    place = str(place).rstrip("/")
    names = list(stores.entries(place))
    steps = complete_steps(names)
    if "config.json" in names and not steps and any(name.startswith("checkpoints/") for name in names):
        raise UserError(
            f"{place} has no complete checkpoint: {COMPLETE}, which is written last, is in none of them; let its "
            "training run to the first one, or copy the run there again."
        )
    if "config.json" in names and steps:
        chosen = step if step in steps else steps[-1]
        names = [name for name in names if name == "config.json" or name.startswith(f"checkpoints/{chosen}/")]
    else:
        names = [n for n in names if "/" not in n and (not n or n.endswith((".json", ".bin", *SUFFIXES)))]
    with stores.copied(place, names) as path:
        for known in steps:
            (path / "checkpoints" / str(known)).mkdir(parents=True, exist_ok=True)
        yield path


class Records:
    """The config.json and metrics.jsonl of the runs at and below a place: `path` is a folder with them, new at each `look`."""

    def __init__(self, place: str | Path):
        self.place, self._seen = str(place), dict[str, stores.Entry]()
        self._is_remote = stores.is_remote(place)
        self.path = Path(place)
        if self._is_remote:  # under its own name, which is that of a run
            self.path = stores.own_folder(self.place, "records") / os.path.basename(self.place.rstrip("/"))

    def look(self) -> None:
        """Copies those that are new or have changed; of a folder here there is nothing to do."""
        if not self._is_remote:
            return
        found = {n: entry for n, entry in stores.entries(self.place).items() if os.path.basename(n) in RECORDS}
        stores.fetch(self.place, [name for name in found if found[name] != self._seen.get(name)], self.path)
        self._seen = found
