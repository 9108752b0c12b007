"""The lock of a workdir: one run at a time, even if machines share the folder and the file system has no locks."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_jax.types import UserError

NAME = "run.lock"
BEAT_SECONDS = 5.0
# A run on another machine that has not touched its lock for this long has ended.
STALE_SECONDS = 45.0
_held: set[Any] = set()  # tokens of this process


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Lock a workdir, which is created if needed; raise UserError while another run has locked it.

    The lock is a file that the run touches every BEAT_SECONDS. It names the process, so that the end of a killed run is
    noticed at once on the same machine, and on other machines once the file is no longer touched.
    """
    path = workdir / NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        own = _acquire(path)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}.") from None
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    thread.start()
    _held.add(own["token"])
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _held.remove(own["token"])
        with contextlib.suppress(OSError):
            if _read(path) == own:
                path.unlink()


def _acquire(path: Path) -> dict[str, Any]:
    """Create the lock and return its content, replacing a lock whose run has ended."""
    while True:
        with contextlib.suppress(FileExistsError):
            return _create(path)
        found = _read(path)
        if found is not None and _is_alive(path, found):
            raise UserError(
                f"--workdir={path.parent} is in use by another run (process {found.get('pid')} on {found.get('host')}); wait for "
                "its end, stop it, or give another --workdir."
            )
        # If two processes find it stale, only the one that renames it continues, and only if it has not changed.
        taken = path.with_name(f"{NAME}.{secrets.token_hex(4)}")
        with _exclusive(path.parent), contextlib.suppress(FileNotFoundError):
            if _read(path) == found:
                os.rename(path, taken)
                taken.unlink()


def _create(path: Path) -> dict[str, Any]:
    with open(path, "x", encoding="utf-8") as file:
        # In a copy of the folder the lock has another inode, and no run.
        own = {**_identity(os.getpid()), "inode": os.fstat(file.fileno()).st_ino, "token": secrets.token_hex(8)}
        file.write(json.dumps(own))
        file.flush()
        os.fsync(file.fileno())
    return own


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a lock: empty if it is being written or damaged, None if it is missing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}


def _is_alive(path: Path, found: Mapping[str, Any]) -> bool:
    """Return whether the run that holds a lock still runs; waits for its beat if the system cannot tell."""
    with contextlib.suppress(OSError):
        if found and found.get("inode") != path.stat().st_ino:
            return False
    pid, here = found.get("pid"), _identity(os.getpid())
    if isinstance(pid, int) and all(found.get(key) == here[key] for key in ("host", "boot", "pids")):
        runs = _identity(pid)["started"] == found.get("started")
        return found.get("token") in _held if runs and pid == os.getpid() else runs
    first, since = _beat_of(path), time.monotonic()
    print(f"waiting up to {STALE_SECONDS:.0f} s to see whether the run of {path} still lives", flush=True)
    while time.monotonic() - since < STALE_SECONDS:
        time.sleep(min(1.0, BEAT_SECONDS))
        if _beat_of(path) != first:
            return True
    return False


def _identity(pid: int) -> dict[str, Any]:
    """Return what identifies a process: its host, boot, namespace of process ids, id and start time.

    started is None if no such process runs.
    """
    started = boot = pids = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.readlink("/proc/self/ns/pid")
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        started = None if state in "ZX" else fields[18]  # killed and not yet waited for
    if boot is None:  # not Linux
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            started = "unknown"
    return {"host": socket.gethostname(), "boot": boot, "pids": pids, "pid": pid, "started": started}


def _beat_of(path: Path) -> float | None:
    with contextlib.suppress(OSError), open(path) as file:  # network file systems look again when a file is opened
        return os.fstat(file.fileno()).st_mtime
    return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # the run itself reports what is wrong with its workdir
            os.utime(path)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder against the processes of this machine, if the file system supports it."""
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
