"""What a sweep shows while it runs: a live table in a terminal, a line for each change elsewhere; and its end."""

import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vit_jax.runs.sweeps.progress import Progress
from vit_jax.runs.sweeps.record import Run

REFRESH = 1.0  # seconds
WIDE = 200  # columns where there is no terminal
STYLES = {"running": "yellow", "finished": "green", "failed": "red", "waiting": "dim", "stopped": "blue"}
ORDER = ("running", "failed", "waiting", "finished", "stopped")  # what a low terminal shows first


class Pace:
    """The seconds that runs take for a step, as seen since they were started here."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}
        self._seconds: dict[str, float] = {}

    def see(self, name: str, step: int, now: float) -> None:
        """Takes where a run is now."""
        begin, first = self._begun.setdefault(name, (now, step))
        if step > first:
            self._seconds[name] = (now - begin) / (step - first)

    def end(self, name: str) -> None:
        """Forgets from where a run is clocked, as it was begun anew or ended."""
        self._begun.pop(name, None)

    def left(self, name: str, step: int, steps: int | None) -> float | None:
        """The seconds that a run needs yet; of one not seen, at the mean pace of the others."""
        if not self._seconds or steps is None:
            return None
        pace = self._seconds.get(name) or statistics.mean(self._seconds.values())
        return max(0, steps - step) * pace


class Board:
    """Shows the runs of a sweep as they are; metric and mode are the sweep's."""

    def __init__(self, metric: str | None, mode: str, console: Console | None = None):
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console = Console(file=self.console.file, width=WIDE, highlight=False, soft_wrap=True)
        self.metric, self.mode, self.pace = metric, mode, Pace()
        self._live: Live | None = None
        self._shown, self._note = 0.0, ""

    def begin(self, runs: Sequence[Run], slots: int) -> None:
        """Says what is about to run."""
        counts = dict.fromkeys(("finished", "stopped", "to resume", "to begin"), 0)
        for run in runs:
            counts[run.state if run.state in counts else "to resume" if run.attempts else "to begin"] += 1
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        self.console.print(f"{len(runs)} in all: {told}; {slots} at once", markup=False)

    def changed(self, run: Run, runs: Sequence[Run], progress: Progress) -> None:
        """A run has another state: a line where there is no terminal."""
        self.pace.end(run.name)
        self._shown = 0.0
        if self.console.is_terminal:
            return
        ended = sum(other.state in ("finished", "failed", "stopped") for other in runs)
        at = f" at step {progress.step}" if progress.step and run.state != "finished" else ""
        value = f", {self.metric} {number(progress.last)}" if progress.last is not None and self.metric else ""
        why = f": {run.reason}" if run.reason else ""
        state = "to be taken up again" if run.state == "waiting" else run.state
        self.console.print(f"[{ended}/{len(runs)}] {run.name}: {state}{at}{value}{why}", markup=False)

    def say(self, note: str) -> None:
        """Tells something, which in a terminal stays below the table."""
        self._note, self._shown = note, 0.0
        if not self.console.is_terminal:
            self.console.print(note, markup=False)

    def show(self, runs: Sequence[Run], progress: Mapping[str, Progress], slots: int) -> None:
        """Brings the live table up to date, once a second."""
        now = time.monotonic()
        for run in runs:
            if run.state == "running" and progress[run.name].step:
                self.pace.see(run.name, progress[run.name].step, now)
        if not self.console.is_terminal or now - self._shown < REFRESH:
            return
        self._shown = now
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self.table(runs, progress, slots), refresh=True)

    def close(self) -> None:
        """Takes the live table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self, runs: Sequence[Run], progress: Mapping[str, Progress], slots: int) -> Table:
        """The live table: as many runs as the terminal has lines, and what they sum up to."""
        space = max(3, self.console.height - 6)
        chosen = set(sorted(range(len(runs)), key=lambda i: ORDER.index(runs[i].state))[:space])
        known = [p.steps for p in progress.values() if p.steps is not None]
        usual = round(statistics.mean(known)) if known else None
        left = {
            run.name: self.pace.left(run.name, progress[run.name].step, progress[run.name].steps or usual)
            for run in runs
            if run.state in ("running", "waiting")
        }
        table = self._columns("state", "step", "loss", *([f"best {self.metric}"] if self.metric else []), "ETA")
        for index, run in enumerate(runs):
            if index in chosen:
                p = progress[run.name]
                state = "to resume" if run.state == "waiting" and run.attempts else run.state
                best = [number(p.best)] if self.metric else []
                eta = clock(left[run.name]) if run.state == "running" else ""
                style = STYLES[run.state]
                table.add_row(run.name, Text(state, style), f"{p.step}/{p.steps or '?'}", number(p.loss), *best, eta)
        counts = ", ".join(f"{n} {state}" for state in STYLES if (n := sum(run.state == state for run in runs)))
        hidden = f"; {len(runs) - len(chosen)} runs not shown" if len(chosen) < len(runs) else ""
        whole = max([max(values, default=0), sum(values) / max(1, slots)]) if (values := known_of(left)) else None
        table.caption = f"{counts}; all in {clock(whole)}{hidden}" + (f"\n{self._note}" if self._note else "")
        return table

    def summary(self, runs: Sequence[Run], progress: Mapping[str, Progress]) -> None:
        """Prints the runs by what they reached, the best setting, and what failed."""
        self.close()
        sign = -1 if self.mode == "max" else 1

        def rank(run: Run) -> tuple[bool, float]:
            value = progress[run.name].last
            return (value is None, 0.0 if value is None else sign * value)

        table = self._columns("state", "step", "loss", *([self.metric] if self.metric else []))
        for run in sorted(runs, key=rank):
            p = progress[run.name]
            last = [number(p.last)] if self.metric else []
            table.add_row(
                run.name, Text(run.state, STYLES[run.state]), f"{p.step}/{p.steps or '?'}", number(p.loss), *last
            )
        self.console.print(table)
        if best := self.best(runs, progress):
            self.console.print(best, markup=False, highlight=False)
        for run in runs:
            if run.state == "failed":
                self.console.print(f"failed: {run.name}: {run.reason}", markup=False)

    def best(self, runs: Sequence[Run], progress: Mapping[str, Progress]) -> str | None:
        """The setting, seeds aside, whose finished runs have the best mean of the metric."""
        groups: dict[str, list[float]] = {}
        for run in runs:
            value = progress[run.name].last
            if run.state == "finished" and value is not None:
                setting = ", ".join(f"{key}={value}" for key, value in run.settings.items() if key != "seed")
                groups.setdefault(setting or "the config as it is", []).append(value)
        if not groups:
            return None
        means = {setting: statistics.mean(values) for setting, values in groups.items()}
        setting = (max if self.mode == "max" else min)(means, key=lambda key: means[key])
        count = len(groups[setting])
        several = f", mean of {count} seeds" if count > 1 else ""
        return f"best: {setting}: {self.metric} {number(means[setting])}{several}"

    def _columns(self, *names: str) -> Table:
        table = Table("run", box=None, header_style="bold", caption_justify="left")
        table.columns[0].overflow = "fold"
        for name in names:
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        return table


def known_of(seconds: Mapping[str, float | None]) -> list[float]:
    """The numbers among them."""
    return [value for value in seconds.values() if value is not None]


def number(value: float | None) -> str:
    """A metric as a table shows it."""
    return "" if value is None else f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}"


def clock(seconds: float | None) -> str:
    """Seconds as 1:02:03."""
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))
