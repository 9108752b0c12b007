"""What runs the jobs of a sweep: the contract between the controller and this machine, or a cluster."""

import abc
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Job:
    """One attempt at a run: a command, started in `folder`, its output appended to `log`, while it alone holds `lock`.

    `environment` is all that the command finds in its environment, but for what the executor adds to name its devices.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    log: Path
    lock: Path
    environment: Mapping[str, str]

    def attended(self, parent: int, cores: Sequence[int] = ()) -> list[str]:
        """The words that start the job as a child of the process `parent`, with which it ends; see child.py.

        Started from the main thread of that process: to Linux the thread is the parent.
        """
        words = [sys.executable, "-m", "vit_jax.runs.sweeps.child", str(self.log), str(self.lock), str(parent)]
        return [*words, ",".join(map(str, cores)), *self.command]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A job that ended: its exit code, negative for a signal as in subprocess; None where its machine was lost.

    `reason` says more where the exit code does not.
    """

    name: str
    code: int | None
    reason: str = ""


class Executor(abc.ABC):
    """Runs jobs. The controller calls it from its main thread alone, and no call waits for a job."""

    @property
    @abc.abstractmethod
    def slots(self) -> int:
        """How many jobs may run at once now; this may change while a cluster grows and shrinks."""

    @abc.abstractmethod
    def start(self, job: Job) -> None:
        """Starts a job; called only while fewer than `slots` run, and not twice for a name before its end was told."""

    @abc.abstractmethod
    def poll(self) -> list[Ended]:
        """The jobs that ended since the last call, each once."""

    @abc.abstractmethod
    def stop(self, name: str) -> None:
        """Sends SIGTERM to a job, which saves and ends; its end is told by `poll` as any other. Nothing if it has ended."""

    @abc.abstractmethod
    def close(self) -> None:
        """Kills what still runs and gives everything back."""
