"""Jobs on this machine, its cores and accelerators divided among them."""

import contextlib
import os
import subprocess

from vit_jax.runs.sweeps.devices import Share, divide
from vit_jax.runs.sweeps.executor import Ended, Executor, Job


class Local(Executor):
    """So many jobs at once; by default one for each accelerator, or one where there is none."""

    def __init__(self, jobs: int | None = None):
        self._free = divide(jobs, os.environ)
        self._slots = len(self._free)
        self._running: dict[str, tuple[subprocess.Popen, Share]] = {}

    @property
    def slots(self) -> int:
        """See Executor."""
        return self._slots

    def start(self, job: Job) -> None:
        """See Executor; in a session of its own, as Ctrl-C in the terminal would reach it too."""
        share = self._free.pop(0)
        process = subprocess.Popen(
            job.attended(os.getpid(), share.cores),
            cwd=job.folder,
            env={**job.environment, **share.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._running[job.name] = process, share

    def poll(self) -> list[Ended]:
        """See Executor."""
        ended = [
            Ended(name, code) for name, (process, _) in self._running.items() if (code := process.poll()) is not None
        ]
        for job in ended:
            self._free.append(self._running.pop(job.name)[1])
        return ended

    def stop(self, name: str) -> None:
        """See Executor."""
        if name in self._running:
            self._running[name][0].terminate()

    def close(self) -> None:
        """See Executor."""
        for process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._running.clear()
