"""The controller of a sweep: starts runs, judges how they ended, and keeps the record."""

import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from vit_jax.runs.sweeps.board import Board
from vit_jax.runs.sweeps.executor import Ended, Executor, Job
from vit_jax.runs.sweeps.progress import Progress
from vit_jax.runs.sweeps.record import Record, Run, State
from vit_jax.runs.sweeps.search import Halving
from vit_jax.xla_env import given

PAUSE = 0.25  # seconds between two looks at the runs
DIVERGED, MISTAKE = 1, 2  # exit codes of vit_jax.main
# How the message of a run that diverged begins; any other program that ends with 1 has crashed.
STOPPED = "Stopped: the "
TAIL = 65536  # bytes of a log that are searched for a reason


class Controller:
    """Takes every run of a record to its end, through an executor; a run whose process crashed is tried `retries` times more.

    folder: of sweep.json, the workdirs and the logs. commands: by the names of the runs. search: what stops runs early, if any.
    """

    def __init__(
        self,
        record: Record,
        folder: Path,
        commands: Mapping[str, Sequence[str]],
        executor: Executor,
        board: Board,
        retries: int,
        search: Halving | None = None,
    ):
        self.record, self.folder, self.commands = record, folder, commands
        self.executor, self.board, self.retries = executor, board, retries
        self.runs = {run.name: run for run in record.runs}
        self.progress = {name: Progress(folder / name, record.metric, record.mode) for name in self.runs}
        self.failures = dict.fromkeys(self.runs, 0)
        self.began: dict[str, int] = {}  # the saved step from which a running one set out
        self.search, self.behind = search, set[str]()  # the runs that were told to end for good
        self.stopping = 0  # the signal that ended the sweep

    def run(self) -> int:
        """Returns when every run has ended: 0 if all are finished, 1 if some failed, 128 + the signal that ended it before."""
        queue = self.prepare()
        self.board.begin(self.record.runs, self.executor.slots)
        with self.signals():
            try:
                told = False
                while self.running() or (queue and not self.stopping):
                    if self.stopping and not told:
                        told = True
                        self.board.say("stopping: the runs save and end; Ctrl-C again kills them")
                        for name in self.running():
                            self.executor.stop(name)
                    for ended in self.executor.poll():
                        if self.judge(ended):
                            queue.append(ended.name)
                    while queue and not self.stopping and len(self.running()) < self.executor.slots:
                        self.start(queue.popleft())
                    for name in self.running():
                        self.progress[name].refresh()
                        if self.falls_behind(name):
                            self.behind.add(name)
                            self.executor.stop(name)
                    self.board.show(self.record.runs, self.progress, self.executor.slots)
                    time.sleep(PAUSE)
            finally:
                self.executor.close()
        if self.stopping and any(run.state == "waiting" for run in self.record.runs):
            return 128 + self.stopping
        return 1 if any(run.state == "failed" for run in self.record.runs) else 0

    def prepare(self) -> deque[str]:
        """The runs that are not finished, those first that were begun; what failed in an earlier sweep is tried again."""
        (self.folder / ".locks").mkdir(exist_ok=True)
        for run in self.record.runs:
            self.progress[run.name].refresh()
            self.falls_behind(run.name)  # the search sees what it saw before
            done = run.state == "finished" and self.progress[run.name].complete()
            if not done and not (run.state == "stopped" and self.search):
                run.state, run.reason = "waiting", ""
        self.record.write(self.folder)
        waiting = [run for run in self.record.runs if run.state == "waiting"]
        return deque(run.name for run in sorted(waiting, key=lambda run: not run.attempts))

    def running(self) -> list[str]:
        """The names of the runs that are under way."""
        return [run.name for run in self.record.runs if run.state == "running"]

    def start(self, name: str) -> None:
        """Starts an attempt, which the record counts first."""
        run = self.runs[name]
        run.attempts += 1
        self.began[name] = self.progress[name].saved()
        self.change(run, "running")
        log, lock = (self.folder / f"{name}.log").absolute(), (self.folder / ".locks" / name).absolute()
        self.executor.start(Job(name, tuple(self.commands[name]), Path.cwd(), log, lock, given(os.environ)))

    def falls_behind(self, name: str) -> bool:
        """Whether the search finds a run behind others by what is new; what it measured at its end no longer counts."""
        progress = self.progress[name]
        on_the_way = [at for at in progress.measured if at[0] != progress.steps]
        return self.search is not None and self.search.behind(name, on_the_way)

    def judge(self, ended: Ended) -> bool:
        """Enters how an attempt ended into the record; whether the run is to be taken up again."""
        run, progress = self.runs[ended.name], self.progress[ended.name]
        if ended.code == 0 and progress.complete():
            self.change(run, "finished")
            return False
        lines = self.last_lines(run.name)
        diverged = ended.code == DIVERGED and any(line.startswith(STOPPED) for line in lines)
        told = [line for line in lines if line.startswith((STOPPED, "error: "))] or lines or ["its log is empty"]
        reason = ended.reason or told[-1]
        if diverged or ended.code == MISTAKE:
            self.change(run, "failed", reason)
            return False
        if run.name in self.behind and ended.code in (0, -signal.SIGTERM):
            self.change(run, "stopped")
            return False
        if self.stopping:
            self.change(run, "waiting", "the sweep was stopped")
            return True
        # Ended from outside: preempted, told to end, or its machine is gone. It goes on as long as it comes further.
        if ended.code in (0, None, -signal.SIGTERM):
            reason = ended.reason or ("it was told to end" if ended.code is not None else "its machine was lost")
            if progress.saved() > self.began[run.name]:
                self.change(run, "waiting", reason)
                return True
        elif ended.code < 0:
            reason = ended.reason or f"killed by {signal.Signals(-ended.code).name}"
        self.failures[run.name] += 1
        again = self.failures[run.name] <= self.retries
        self.change(run, "waiting" if again else "failed", reason)
        return again

    def change(self, run: Run, state: State, reason: str = "") -> None:
        """Gives a run another state, in the record on the disk too."""
        run.state, run.reason = state, reason
        self.record.write(self.folder)
        self.board.changed(run, self.record.runs, self.progress[run.name])

    def last_lines(self, name: str) -> list[str]:
        """The end of the log of the last attempt, without empty lines."""
        with contextlib.suppress(OSError), open(self.folder / f"{name}.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            text = file.read().decode(errors="replace").rpartition("\n$ ")[2]
            return [line.strip() for line in text.splitlines() if line.strip()]
        return []

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM have the runs saved before the sweep ends; a second one kills them."""
        previous = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The handler of those signals."""
        if self.stopping:
            sys.exit(128 + number)
        self.stopping = number
