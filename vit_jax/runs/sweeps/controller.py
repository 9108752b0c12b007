"""Control a sweep: start runs, retry or fail them when they end, and update the record."""

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
from vit_jax.runs.sweeps.executor import Executor, Job, JobEnd
from vit_jax.runs.sweeps.halving import SuccessiveHalving
from vit_jax.runs.sweeps.progress import RunProgress
from vit_jax.runs.sweeps.record import RunState, SweepRecord, SweepRun
from vit_jax.xla_env import user_environment

POLL_SECONDS = 0.25
DIVERGED, MISTAKE = 1, 2  # exit codes of vit_jax.main
# First words of a diverged run's message; any other program that exits with 1 has crashed.
STOPPED = "Stopped: the "
LOG_TAIL = 65536  # bytes of a log searched for the reason of a failure


class Controller:
    """Runs all unfinished runs of a record with an executor; a crashed run is retried `retries` times.

    folder: contains sweep.json, the workdirs and the logs. commands: the command of each run by name. search: stops runs early.
    """

    def __init__(
        self,
        record: SweepRecord,
        folder: Path,
        commands: Mapping[str, Sequence[str]],
        executor: Executor,
        board: Board,
        retries: int,
        search: SuccessiveHalving | None = None,
    ):
        self.record, self.folder, self.commands = record, folder, commands
        self.executor, self.board, self.retries = executor, board, retries
        self.runs = {run.name: run for run in record.runs}
        self.progress = {name: RunProgress(folder / name, record.metric, record.mode) for name in self.runs}
        self.failures = dict.fromkeys(self.runs, 0)
        self.start_step: dict[str, int] = {}  # the saved step at which the current attempt started
        self.search, self.pruned = search, set[str]()  # runs stopped by the search
        self.stopping = 0  # the signal that ended the sweep

    def run(self) -> int:
        """Block until every run has ended; return 0 if all are finished, 1 if some failed, or 128 + the signal received."""
        queue = self.prepare()
        self.board.begin(self.record.runs, self.executor.slots)
        with self.handle_signals():
            try:
                notified = False
                while self.running() or (queue and not self.stopping):
                    if self.stopping and not notified:
                        notified = True
                        self.board.notify("stopping: the runs save and exit; Ctrl-C again kills them")
                        for name in self.running():
                            self.executor.stop(name)
                    queue.extend(end.name for end in self.executor.poll() if self.handle_end(end))
                    while queue and not self.stopping and len(self.running()) < self.executor.slots:
                        self.start(queue.popleft())
                    for name in self.running():
                        self.progress[name].refresh()
                        if self.should_stop(name):
                            self.pruned.add(name)
                            self.executor.stop(name)
                    self.board.refresh(self.record.runs, self.progress, self.executor.slots)
                    time.sleep(POLL_SECONDS)
            finally:
                self.executor.close()
        if self.stopping and any(run.state == "waiting" for run in self.record.runs):
            return 128 + self.stopping
        return 1 if any(run.state == "failed" for run in self.record.runs) else 0

    def prepare(self) -> deque[str]:
        """Return the unfinished runs, already started ones first; runs that failed in an earlier sweep are retried."""
        (self.folder / ".locks").mkdir(exist_ok=True)
        for run in self.record.runs:
            self.progress[run.name].refresh()
            self.should_stop(run.name)  # replays earlier measurements to the search
            done = run.state == "finished" and self.progress[run.name].is_complete()
            if not done and not (run.state == "stopped" and self.search):
                run.state, run.reason = "waiting", ""
        self.record.write(self.folder)
        waiting = [run for run in self.record.runs if run.state == "waiting"]
        return deque(run.name for run in sorted(waiting, key=lambda run: not run.attempts))

    def running(self) -> list[str]:
        return [run.name for run in self.record.runs if run.state == "running"]

    def start(self, name: str) -> None:
        """Start an attempt at a run after counting it in the record."""
        run = self.runs[name]
        run.attempts += 1
        self.start_step[name] = self.progress[name].saved_step()
        self.set_state(run, "running")
        log, lock = (self.folder / f"{name}.log").absolute(), (self.folder / ".locks" / name).absolute()
        self.executor.start(Job(name, tuple(self.commands[name]), Path.cwd(), log, lock, user_environment(os.environ)))

    def should_stop(self, name: str) -> bool:
        """Return whether the search stops a run because of new measurements, ignoring measurements of the last step."""
        progress = self.progress[name]
        measured = [point for point in progress.measured if point[0] != progress.steps]
        return self.search is not None and self.search.should_stop(name, measured)

    def handle_end(self, end: JobEnd) -> bool:
        """Set the state of a run after its attempt ended, and return whether to start it again."""
        run, progress = self.runs[end.name], self.progress[end.name]
        if end.code == 0 and progress.is_complete():
            self.set_state(run, "finished")
            return False
        lines = self.log_tail(run.name)
        diverged = end.code == DIVERGED and any(line.startswith(STOPPED) for line in lines)
        messages = [line for line in lines if line.startswith((STOPPED, "error: "))] or lines or ["its log is empty"]
        reason = end.reason or messages[-1]
        if diverged or end.code == MISTAKE:
            self.set_state(run, "failed", reason)
            return False
        if run.name in self.pruned and end.code in (0, -signal.SIGTERM):
            self.set_state(run, "stopped")
            return False
        if self.stopping:
            self.set_state(run, "waiting", "the sweep was stopped")
            return True
        # Ended from outside: preempted, terminated, or its machine was lost. Not a failure while it makes progress.
        if end.code in (0, None, -signal.SIGTERM):
            reason = end.reason or ("it was terminated" if end.code is not None else "its machine was lost")
            if progress.saved_step() > self.start_step[run.name]:
                self.set_state(run, "waiting", reason)
                return True
        elif end.code < 0:
            reason = end.reason or f"killed by {signal.Signals(-end.code).name}"
        self.failures[run.name] += 1
        retry = self.failures[run.name] <= self.retries
        self.set_state(run, "waiting" if retry else "failed", reason)
        return retry

    def set_state(self, run: SweepRun, state: RunState, reason: str = "") -> None:
        """Set the state of a run, write the record and update the board."""
        run.state, run.reason = state, reason
        self.record.write(self.folder)
        self.board.run_changed(run, self.record.runs, self.progress[run.name])

    def log_tail(self, name: str) -> list[str]:
        """Return the last non-empty lines logged by the last attempt."""
        with contextlib.suppress(OSError), open(self.folder / f"{name}.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
            text = file.read().decode(errors="replace").rpartition("\n$ ")[2]
            return [line.strip() for line in text.splitlines() if line.strip()]
        return []

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Inside the context, Ctrl-C and SIGTERM save all runs and end the sweep; a second signal kills them."""
        previous = {number: signal.signal(number, self.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask the main loop to stop; exit at the second signal."""
        if self.stopping:
            sys.exit(128 + number)
        self.stopping = number
