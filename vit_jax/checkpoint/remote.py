"""Runs and models on object stores: a run writes to a local folder, which is uploaded as it grows."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from etils import epath

from vit_jax import distributed as processes
from vit_jax import stores
from vit_jax.checkpoint import lock
from vit_jax.checkpoint.saver import COMPLETE, steps_in
from vit_jax.pretrained.reference import SUFFIXES
from vit_jax.printable import line
from vit_jax.types import UserError

UPLOAD_SECONDS = 15.0  # between uploads
# The files that a report reads.
REPORT_FILES = ("config.json", "metrics.jsonl")
# The files of a run that a model needs in addition to a checkpoint.
WHOLE = ("config.json", "tokenizer.json")


class Workdir:
    """The folder of a run: the local `path`, `checkpoints` for orbax, and the `url` that the user specified."""

    def __init__(self, url: str | Path):
        self.url = os.path.expanduser(url)
        self.path = Path(self.url)
        self.checkpoints: os.PathLike[str] = self.path / "checkpoints"

    def push(self) -> None:
        """Upload new files."""

    def shown(self, path: os.PathLike[str]) -> str:
        """Return a path in the workdir as the user specified it, on one printable line."""
        return line(path)


class RemoteWorkdir(Workdir):
    """A workdir on an object store, with a local copy.

    On gs:// orbax writes the checkpoints, each process its shards; on s3:// complete local checkpoints are uploaded. On both, a
    checkpoint is complete once it contains the file COMPLETE, which is written last.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._is_native = url.startswith("gs:")
        if not self._is_native and jax.process_count() > 1:
            raise UserError(
                f"--workdir={url}: {jax.process_count()} processes cannot write a checkpoint to s3:// together; use a gs:// "
                "path, or a folder that all of them share."
            )
        found = stores.entries(url)
        if "" in found:
            raise UserError(f"--workdir={url} is a file; use a new folder, or the folder of a run to resume.")
        self.path = stores.own_folder(url, f"process {jax.process_index()}")
        self.checkpoints = epath.Path(f"{self.url}/checkpoints") if self._is_native else self.path / "checkpoints"
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._complete = complete_steps(found)
        self._fetch(found)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _fetch(self, found: Iterable[str]) -> None:
        """Download the files that a run needs to resume."""
        files = [name for name in found if not name.startswith("checkpoints/")]
        if "config.json" in files:
            for step in self._complete:
                (self.path / "checkpoints" / str(step)).mkdir(parents=True)
            parts = [name for name in found if re.match(r"checkpoints/\d+/", name) and not self._is_native]
            whole = [name for name in parts if int(name.split("/")[1]) in self._complete]
            stores.fetch(self.url, [*files, *whole], self.path)
        elif files:  # not a run: one file is enough to say so
            (self.path / Path(files[0]).parts[0]).touch()
        self._sent = self._files()

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return the files outside the checkpoints with their modification times and sizes."""
        found = {}
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if name != "checkpoints"]
            for path in (Path(folder) / name for name in names if not name.endswith((".partial", lock.NAME))):
                found[path.relative_to(self.path).as_posix()] = (path.stat().st_mtime_ns, path.stat().st_size)
        return found

    def push(self) -> None:
        if not processes.is_first():
            return
        with self._lock:
            # Listed before the files are uploaded, so that metrics.jsonl has all rows up to each checkpoint.
            here = [] if self._is_native else steps_in(self.path / "checkpoints")
            files = self._files()
            for name in files:
                if files[name] != self._sent.get(name):
                    stores.write(f"{self.url}/{name}", (self.path / name).read_bytes())
            self._sent = files
            for step in here:
                if step not in self._complete:
                    self._send_checkpoint(step)
            for step in sorted(set(self._complete) - set(here)) if here else ():
                self._remove_checkpoint(step)

    def _send_checkpoint(self, step: int) -> None:
        folder, url = self.path / "checkpoints" / str(step), f"{self.url}/checkpoints/{step}"
        stores.remove(url, stores.entries(url))  # partially uploaded before a kill
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        stores.send(folder, [name for name in names if name != COMPLETE], url)
        stores.write(f"{url}/{COMPLETE}", b"")
        self._complete.append(step)

    def _remove_checkpoint(self, step: int) -> None:
        url = f"{self.url}/checkpoints/{step}"
        names = list(stores.entries(url))
        stores.remove(url, sorted(names, key=lambda name: name != COMPLETE))  # first, so that it is no longer complete
        self._complete.remove(step)

    def _watch(self) -> None:
        while not self._ended.wait(UPLOAD_SECONDS):
            with contextlib.suppress(UserError, FileNotFoundError):  # try again later; the last push raises
                self.push()

    def close(self) -> None:
        """Stop uploading and remove the local copy."""
        self._ended.set()
        self._thread.join()
        shutil.rmtree(self.path, ignore_errors=True)

    def shown(self, path: os.PathLike[str]) -> str:
        return line(str(path).replace(str(self.path), self.url, 1))


@contextlib.contextmanager
def opened(url: str | Path) -> Iterator[Workdir]:
    """Open the workdir of a run; when the context ends, even by an error, all files are uploaded."""
    if not stores.is_remote(url):
        yield Workdir(url)
        return
    workdir = RemoteWorkdir(str(url))
    try:
        with stores.replace_path(workdir.path, workdir.url):
            yield workdir
    except BaseException:
        with contextlib.suppress(UserError):
            workdir.push()
        raise
    else:
        workdir.push()
    finally:
        workdir.close()


def complete_steps(names: Iterable[str]) -> list[int]:
    """Return the sorted steps of complete checkpoints, given the names of a workdir's objects."""
    found = (re.fullmatch(rf"checkpoints/(\d+)/{COMPLETE}", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


@contextlib.contextmanager
def fetched(url: str | Path, step: int | None = None) -> Iterator[Path]:
    """Yield the local path of a model; a model on a store is downloaded to a temporary folder.

    For a run, only config.json, its tokenizer and the checkpoint of `step` (default: the last) are downloaded; other
    checkpoints become empty folders.
    """
    if not stores.is_remote(url):
        yield Path(url)
        return
    url = str(url).rstrip("/")
    names = list(stores.entries(url))
    steps = complete_steps(names)
    if "config.json" in names and not steps and any(name.startswith("checkpoints/") for name in names):
        raise UserError(
            f"{url} has no complete checkpoint: none contains {COMPLETE}, which is written last. Train until the first "
            "checkpoint, or copy the run there again."
        )
    if "config.json" in names and steps:
        chosen = step if step in steps else steps[-1]
        names = [name for name in names if name in WHOLE or name.startswith(f"checkpoints/{chosen}/")]
    else:
        names = [n for n in names if "/" not in n and (not n or n.endswith((".json", ".bin", *SUFFIXES)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / os.path.basename(url)
        with stores.replace_path(path, url):
            stores.fetch(url, names, path)
            for known in steps:
                (path / "checkpoints" / str(known)).mkdir(parents=True, exist_ok=True)
            yield path


class RunFiles:
    """Local copies of config.json and metrics.jsonl of the runs at and below `url`, in the folder `path`."""

    def __init__(self, url: str | Path):
        self.url, self._seen = str(url), dict[str, stores.ObjectInfo]()
        self._is_remote = stores.is_remote(url)
        self.path = Path(url)
        if self._is_remote:  # keeps the last part of the path, which may be the name of a run
            self.path = stores.own_folder(self.url, "records") / os.path.basename(self.url.rstrip("/"))

    def sync(self) -> None:
        """Download new and changed files; local folders are used in place."""
        if not self._is_remote:
            return
        found = {n: entry for n, entry in stores.entries(self.url).items() if os.path.basename(n) in REPORT_FILES}
        stores.fetch(self.url, [name for name in found if found[name] != self._seen.get(name)], self.path)
        self._seen = found
