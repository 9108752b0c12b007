"""Run the jobs of a sweep: the interface used by the controller, and its implementation for this machine."""

import abc
import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vit_jax.runs.sweeps.devices import DeviceShare, split_devices


@dataclasses.dataclass(frozen=True)
class Job:
    """One attempt at a run: a command that starts in `folder`, appends its output to `log` and holds `lock` while it runs.

    environment: the complete environment of the command, to which the executor adds variables that select devices.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    log: Path
    lock: Path
    environment: Mapping[str, str]

    def child_command(self, parent: int, cores: Sequence[int] = ()) -> list[str]:
        """Return the command that starts the job as a child of process `parent` and ends with it; see child.py.

        Start it from the main thread: to Linux, the parent is the thread.
        """
        words = [sys.executable, "-m", "vit_jax.runs.sweeps.child", str(self.log), str(self.lock), str(parent)]
        return [*words, ",".join(map(str, cores)), *self.command]


@dataclasses.dataclass(frozen=True)
class JobEnd:
    """The end of a job: its exit code, negative for a signal as in subprocess, or None if its machine was lost."""

    name: str
    code: int | None
    reason: str = ""


class Executor(abc.ABC):
    """Runs jobs. The controller calls it only from its main thread, and no call blocks until a job ends."""

    @property
    @abc.abstractmethod
    def slots(self) -> int:
        """The number of jobs that may run at once; it may change while a cluster grows or shrinks."""

    @abc.abstractmethod
    def start(self, job: Job) -> None:
        """Start a job. Called only while fewer than `slots` jobs run, with a name that is not running."""

    @abc.abstractmethod
    def poll(self) -> list[JobEnd]:
        """Return the jobs that ended since the last call."""

    @abc.abstractmethod
    def stop(self, name: str) -> None:
        """Send SIGTERM to a job, which saves and ends; `poll` returns its end. Does nothing if it has ended."""

    @abc.abstractmethod
    def close(self) -> None:
        """Kill running jobs and release all resources."""


class LocalExecutor(Executor):
    """Runs `jobs` at once on this machine, each on its share of the devices; default: one job per accelerator, or 1."""

    def __init__(self, jobs: int | None = None):
        self._free = split_devices(jobs, os.environ)
        self._slots = len(self._free)
        self._running: dict[str, tuple[subprocess.Popen, DeviceShare]] = {}

    @property
    def slots(self) -> int:
        return self._slots

    def start(self, job: Job) -> None:
        share = self._free.pop(0)
        process = subprocess.Popen(
            job.child_command(os.getpid(), share.cores),
            cwd=job.folder,
            env={**job.environment, **share.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C in the terminal reaches only the controller
        )
        self._running[job.name] = process, share

    def poll(self) -> list[JobEnd]:
        ends = [JobEnd(name, code) for name, (p, _) in self._running.items() if (code := p.poll()) is not None]
        for end in ends:
            self._free.append(self._running.pop(end.name)[1])
        return ends

    def stop(self, name: str) -> None:
        if name in self._running:
            self._running[name][0].terminate()

    def close(self) -> None:
        for process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._running.clear()
