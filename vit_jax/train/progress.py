"""Show the progress of a run: a bar on a terminal, lines elsewhere."""

import math
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import jax

from vit_jax import distributed

LONG = 120.0  # for at least this many seconds of training, an estimate is printed after the first steps
SHOWN = ("loss", "accuracy")  # metrics of a step in the bar
FIRST = 5  # steps after which there is an estimate


class Display:
    """Show nothing, in all processes but the first."""

    def __init__(self, steps: int, batch_size: int, num_examples: int):
        self._steps, self._batch_size, self._per_epoch = steps, batch_size, num_examples / batch_size

    def phase(self, name: str) -> None:
        """Show an activity other than training, such as compiling; "" is training itself."""

    def stepped(self, step: int, metrics: Mapping[str, jax.Array], rate: float | None) -> None:
        """Show a step that the devices have finished, and the images per second after enough steps."""

    def estimated(self, left: int, rate: float) -> None:
        """Print how long the remaining steps will take, if that is long."""

    def logged(self, step: int, means: Mapping[str, float]) -> None:
        """Show the means that were written after a step."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def display(steps: int, batch_size: int, num_examples: int) -> Display:
    """Return the display of this process for standard output."""
    kind = Display if not distributed.is_first() else Bar if sys.stdout.isatty() else Lines
    return kind(steps, batch_size, num_examples)


def time_left(steps: int, batch_size: int, rate: float) -> str:
    """Return the time for more steps at a number of images per second, as 0:12:34."""
    return str(timedelta(seconds=round(steps * batch_size / rate))) if rate else "?"


class Lines(Display):
    """A line for each log."""

    def estimated(self, left: int, rate: float) -> None:
        """See Display."""
        if left * self._batch_size / rate >= LONG:
            print(
                f"{left:,} steps will take about {time_left(left, self._batch_size, rate)}, at {rate:,.0f} images/s; "
                "--config.steps=N for fewer",
                flush=True,
            )

    def logged(self, step: int, means: Mapping[str, float]) -> None:
        """See Display."""
        rate = means["images_per_second"]
        accuracy = f"  accuracy {100 * means['accuracy']:5.1f} %" if "accuracy" in means else ""
        mfu = f"  MFU {means['mfu']:.1%}" if "mfu" in means else ""
        left = time_left(self._steps - step, self._batch_size, rate)
        print(
            f"step {step:>{len(str(self._steps))}}/{self._steps}  loss {means['loss']:.4f}{accuracy}"
            f"  lr {means['lr']:.2e}  {rate:,.0f} images/s{mfu}  waiting for data {means['data_wait']:.0%}  ETA {left}",
            flush=True,
        )


class Bar(Lines):
    """A bar with step, epoch, means since the last log, speed, time left and memory; printed lines appear above it."""

    def __init__(self, steps: int, batch_size: int, num_examples: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(steps, batch_size, num_examples)
        text = TextColumn("{task.description}", markup=False)
        console = Console()
        bar = [BarColumn(bar_width=20)] if console.width >= 110 else []
        self._progress = Progress(*bar, text, console=console, refresh_per_second=4)
        self._task = self._progress.add_task("starting", total=steps)
        self._phase, self._text = "", ""
        self._rate: float | None = None
        self._since: list[dict[str, float]] = []  # values of the steps since the last log
        self._progress.start()

    def phase(self, name: str) -> None:
        """See Display."""
        self._phase = name
        self._draw()
        self._progress.refresh()  # the next operation may take longer than the refresh interval

    def stepped(self, step: int, metrics: Mapping[str, jax.Array], rate: float | None) -> None:
        """See Display."""
        self._since.append({key: float(metrics[key]) for key in SHOWN if key in metrics})
        means = {key: math.fsum(row[key] for row in self._since) / len(self._since) for key in self._since[0]}
        self._show(step, means, rate)

    def logged(self, step: int, means: Mapping[str, float]) -> None:
        """See Display."""
        self._since = []
        self._show(step, means, means["images_per_second"])

    def close(self) -> None:
        """See Display."""
        self._phase = ""
        self._draw()
        self._progress.stop()

    def _show(self, step: int, means: Mapping[str, float], rate: float | None) -> None:
        parts = [f"step {step:,}/{self._steps:,}", f"epoch {step / self._per_epoch:,.1f}"]
        parts += [f"loss {means['loss']:.3f}"] if "loss" in means else []
        parts += [f"acc {100 * means['accuracy']:.1f} %"] if "accuracy" in means else []
        self._rate = rate or self._rate
        if self._rate:
            left = time_left(self._steps - step, self._batch_size, self._rate)
            parts += [f"{self._rate:,.0f} img/s", f"ETA {left}"]
        self._text = "  ".join([*parts, memory()])
        self._progress.update(self._task, completed=step)
        self._draw()

    def _draw(self) -> None:
        self._progress.update(self._task, description="  ".join(filter(None, (self._text, self._phase))) or "starting")


def memory() -> str:
    """Return the memory in use: of the fullest device or, if devices do not report it, as on a CPU, of this process."""
    stats: list[Any] = [device.memory_stats() for device in jax.local_devices()]
    used = max((one.get("bytes_in_use", 0) for one in stats if one), default=0) or resident_bytes()
    return f"{used / 1e9:.1f} GB" if used else ""


def resident_bytes() -> int:
    """Return the memory of this process, or 0 if the system does not report it."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return 0
