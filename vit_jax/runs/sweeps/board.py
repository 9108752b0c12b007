"""Display a running sweep: a live table in a terminal, one line per change elsewhere, and a summary at the end."""

import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vit_jax.printable import is_rate, line
from vit_jax.runs.sweeps.progress import RunProgress
from vit_jax.runs.sweeps.record import SweepRun

REFRESH = 1.0  # seconds
PIPE_WIDTH = 200  # columns if there is no terminal
STYLES = {"running": "yellow", "finished": "green", "failed": "red", "waiting": "dim", "stopped": "blue"}
PRIORITY = ("running", "failed", "waiting", "finished", "stopped")  # order in which rows are kept on a small terminal


class Pace:
    """Estimates the remaining time of runs from their steps per second since this sweep started them."""

    def __init__(self) -> None:
        self._begin: dict[str, tuple[float, int]] = {}
        self._seconds_per_step: dict[str, float] = {}

    def update(self, name: str, step: int, now: float) -> None:
        begin, first = self._begin.setdefault(name, (now, step))
        if step > first:
            self._seconds_per_step[name] = (now - begin) / (step - first)

    def reset(self, name: str) -> None:
        """Forget the starting point of a run that was restarted or has ended."""
        self._begin.pop(name, None)

    def remaining(self, name: str, step: int, steps: int | None) -> float | None:
        """Return the remaining seconds of a run, using the mean pace of all runs while its own is unknown."""
        if not self._seconds_per_step or steps is None:
            return None
        pace = self._seconds_per_step.get(name) or statistics.mean(self._seconds_per_step.values())
        return max(0, steps - step) * pace


class Board:
    """Displays the runs of a sweep, ranked by its `metric` and `mode`."""

    def __init__(self, metric: str | None, mode: str, console: Console | None = None):
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console = Console(file=self.console.file, width=PIPE_WIDTH, highlight=False, soft_wrap=True)
        self.metric, self.mode, self.pace = metric, mode, Pace()
        self._live: Live | None = None
        self._last_refresh, self._note = 0.0, ""

    def begin(self, runs: Sequence[SweepRun], slots: int) -> None:
        """Print the number of runs in each state."""
        counts = dict.fromkeys(("finished", "stopped", "to resume", "to start"), 0)
        for run in runs:
            counts[run.state if run.state in counts else "to resume" if run.attempts else "to start"] += 1
        text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        self.console.print(f"{len(runs)} runs: {text}; {slots} at once", markup=False)

    def run_changed(self, run: SweepRun, runs: Sequence[SweepRun], progress: RunProgress) -> None:
        """Print the new state of a run if there is no terminal."""
        self.pace.reset(run.name)
        self._last_refresh = 0.0
        if self.console.is_terminal:
            return
        ended = sum(other.state in ("finished", "failed", "stopped") for other in runs)
        at = f" at step {progress.step}" if progress.step and run.state != "finished" else ""
        value = (
            f", {self.metric} {format_metric(progress.last, self.metric)}"
            if progress.last is not None and self.metric
            else ""
        )
        reason = f": {run.reason}" if run.reason else ""
        state = "waiting to resume" if run.state == "waiting" else run.state
        self.console.print(line(f"[{ended}/{len(runs)}] {run.name}: {state}{at}{value}{reason}"), markup=False)

    def notify(self, note: str) -> None:
        """Print a note; in a terminal, it stays below the table."""
        self._note, self._last_refresh = note, 0.0
        if not self.console.is_terminal:
            self.console.print(note, markup=False)

    def refresh(self, runs: Sequence[SweepRun], progress: Mapping[str, RunProgress], slots: int) -> None:
        """Update the live table, at most once a second."""
        now = time.monotonic()
        for run in runs:
            if run.state == "running" and progress[run.name].step:
                self.pace.update(run.name, progress[run.name].step, now)
        if not self.console.is_terminal or now - self._last_refresh < REFRESH:
            return
        self._last_refresh = now
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._live_table(runs, progress, slots), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _live_table(self, runs: Sequence[SweepRun], progress: Mapping[str, RunProgress], slots: int) -> Table:
        """Return a table with as many runs as fit on the terminal, and a caption with totals."""
        height = max(3, self.console.height - 6)
        visible = set(sorted(range(len(runs)), key=lambda i: PRIORITY.index(runs[i].state))[:height])
        known = [p.steps for p in progress.values() if p.steps is not None]
        typical = round(statistics.mean(known)) if known else None
        remaining = {
            run.name: self.pace.remaining(run.name, progress[run.name].step, progress[run.name].steps or typical)
            for run in runs
            if run.state in ("running", "waiting")
        }
        table = self._table("state", "step", "loss", *([f"best {self.metric}"] if self.metric else []), "ETA")
        for index in sorted(visible):
            run = runs[index]
            p = progress[run.name]
            state = "to resume" if run.state == "waiting" and run.attempts else run.state
            eta = format_seconds(remaining[run.name]) if run.state == "running" else ""
            table.add_row(*self._cells(run, state, p, p.best), eta)
        counts = ", ".join(f"{n} {state}" for state in STYLES if (n := sum(run.state == state for run in runs)))
        hidden = f"; {len(runs) - len(visible)} runs not shown" if len(visible) < len(runs) else ""
        seconds = [value for value in remaining.values() if value is not None]
        total = max(max(seconds), sum(seconds) / max(1, slots)) if seconds else None
        table.caption = f"{counts}; all in {format_seconds(total)}{hidden}" + (f"\n{self._note}" if self._note else "")
        return table

    def summary(self, runs: Sequence[SweepRun], progress: Mapping[str, RunProgress]) -> None:
        """Print the runs, best first, the best setting, and why runs failed."""
        self.close()
        sign = -1 if self.mode == "max" else 1

        def rank(run: SweepRun) -> tuple[bool, float]:
            value = progress[run.name].last
            return (value is None, 0.0 if value is None else sign * value)

        table = self._table("state", "step", "loss", *([self.metric] if self.metric else []))
        for run in sorted(runs, key=rank):
            p = progress[run.name]
            table.add_row(*self._cells(run, run.state, p, p.last))
        self.console.print(table)
        if best := self._best_setting(runs, progress):
            self.console.print(line(best), markup=False, highlight=False)
        for run in runs:
            if run.state == "failed":
                self.console.print(line(f"failed: {run.name}: {run.reason}"), markup=False)

    def _best_setting(self, runs: Sequence[SweepRun], progress: Mapping[str, RunProgress]) -> str | None:
        """Return the setting, ignoring seeds, with the best mean metric over its finished runs."""
        values_by_setting: dict[str, list[float]] = {}
        for run in runs:
            last = progress[run.name].last
            if run.state == "finished" and last is not None:
                setting = ", ".join(f"{key}={value}" for key, value in run.settings.items() if key != "seed")
                values_by_setting.setdefault(setting or "the unchanged config", []).append(last)
        if not values_by_setting:
            return None
        means = {setting: statistics.mean(values) for setting, values in values_by_setting.items()}
        best = (max if self.mode == "max" else min)(means, key=lambda setting: means[setting])
        count = len(values_by_setting[best])
        seeds = f", mean of {count} seeds" if count > 1 else ""
        return f"best: {best}: {self.metric} {format_metric(means[best], self.metric)}{seeds}"

    def _table(self, *columns: str) -> Table:
        table = Table("run", box=None, header_style="bold", caption_justify="left")
        table.columns[0].overflow = "fold"
        for name in columns:
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        return table

    def _cells(self, run: SweepRun, state: str, p: RunProgress, value: float | None) -> list[str | Text]:
        metric = [format_metric(value, self.metric)] if self.metric else []
        return [run.name, Text(state, STYLES[run.state]), f"{p.step}/{p.steps or '?'}", format_metric(p.loss), *metric]


def format_metric(value: float | None, name: str | None = None) -> str:
    """Return an accuracy in percent, another number with four decimals, a small one with four digits, and "" for None."""
    if value is not None and name and is_rate(name):
        return f"{100 * value:.2f} %"
    return "" if value is None else f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}"


def format_seconds(seconds: float | None) -> str:
    """Format seconds as 1:02:03."""
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))
