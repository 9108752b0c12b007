"""Record the metrics of a run: on the terminal, in metrics.jsonl, and with the writers of writers.py."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import jax

from vit_jax import distributed
from vit_jax.checkpoint.workdir import write_text
from vit_jax.config.hints import fits
from vit_jax.train.progress import FIRST, display
from vit_jax.train.writers import TensorBoard, WandB, Writer, check_wandb
from vit_jax.types import Steps, UserError


class NonFiniteLossError(RuntimeError):
    """The loss of a step, or the parameters after it, were not finite."""


def read_row(line: str | bytes) -> dict[str, Any] | None:
    """Return the step and the numbers of a line of metrics.jsonl; None for a damaged line."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_step(row.get("step")):
        return None
    return {key: value for key, value in row.items() if _is_number(value)}


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl in the order of their steps; damaged lines are left out.

    If a step has several rows, later values replace earlier ones.
    """
    rows: dict[int, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError):
        if Path(path).is_file():
            for row in map(read_row, Path(path).read_bytes().split(b"\n")):
                if row is not None:
                    rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def seconds_of(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds that a run had taken at its last row; None for old runs, which did not record them."""
    seconds: Any = rows[-1].get("seconds") if rows else None
    return float(seconds) if fits(seconds, float) and 0 <= seconds < math.inf else None


def summary(values: Mapping[str, float]) -> str:
    """Return the results of an evaluation in one line: accuracy, loss and number of images first."""
    units = {
        "accuracy": lambda x: f"accuracy {100 * x:.2f} %",
        "accuracy_top5": lambda x: f"top-5 {100 * x:.2f} %",
        "mean_accuracy": lambda x: f"mean accuracy {100 * x:.2f} %",
        "loss": lambda x: f"loss {x:.4f}",
        "num_examples": lambda x: f"{x:,} images",
    }
    parts = [unit(values[key]) for key, unit in units.items() if key in values]
    parts += [f"{key} {value:.4g}" for key, value in values.items() if key not in units]
    return "  ".join(parts)


class Recorder:
    """Write metrics every `every` steps, as means over the steps since the last write, and after every evaluation.

    Step metrics stay on the device until the next step is running, so that the device never waits for the host.
    """

    def __init__(self, every: Steps = 50, tensorboard: bool = True, wandb: str | None = None):
        if every < 1:
            raise UserError(f"log.every is {every}; expected a number of steps.")
        if wandb is not None:
            check_wandb()
        self.every, self.tensorboard, self.wandb = every, tensorboard, wandb

    def open(
        self, workdir: Path, step: int, *, steps: int, batch_size: int, num_examples: int, seconds_at_peak: float | None = None,
    ) -> None:  # fmt: skip
        """Start recording the run in `workdir` after `step`; rows of later steps are removed, as these run again.

        Only the first process writes and has a display. seconds_at_peak: the seconds of a step if the devices only ran
        its operations, at their peak; its share of the measured time is the model FLOPs utilisation (arXiv:2204.02311,
        appendix B).
        """
        self._seconds_at_peak = seconds_at_peak
        self.path, self.steps, self.batch_size = workdir / "metrics.jsonl", steps, batch_size
        self._writers: list[Writer] = []
        self._display = display(steps, batch_size, num_examples)
        self._estimated = False
        self._spent, self._opened = 0.0, time.perf_counter()
        if distributed.is_first():
            kept = [row for row in read_rows(self.path) if row["step"] <= step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
            self._spent = seconds_of(kept) or 0.0
            if self.wandb is not None:  # first, since it may raise, and nothing is open yet
                self._writers.append(WandB(workdir, self.wandb))
            if self.tensorboard:
                self._writers.append(TensorBoard(workdir, step))
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []  # not yet checked to be finite
        self._since_log: list[dict[str, float]] = []
        self._row: dict[str, Any] = {}
        self.restart_clock(step)

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches, and count the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude time that is not training, such as evaluation, from the measured speed."""
        begin = time.perf_counter()
        self.show("evaluating")
        yield
        self.show("")
        self._paused += time.perf_counter() - begin

    def show(self, phase: str) -> None:
        """Show what the run is doing other than training; nothing if the phase is empty."""
        self._display.phase(phase)

    def restart_clock(self, step: int) -> None:
        """Start measuring speed now, at `step`."""
        self._clocked, self._waited, self._paused, self._since = step, 0.0, 0.0, time.perf_counter()

    def took(self, step: int, metrics: dict[str, jax.Array], unreadable: Sized) -> None:
        """Take the metrics of a step that was just dispatched; write the metrics up to the previous step if due."""
        if self._pending and self._pending[-1][0] % self.every == 0:
            self.flush_steps(unreadable)
            self.flush()
        self._pending.append((step, metrics))
        if len(self._pending) > 2:
            # The host may be at most two steps ahead of the device, where batches would otherwise pile up.
            ready, values = self._pending[-3]
            jax.block_until_ready(values)
            self._show_step(ready, values)

    def is_finite(self) -> bool:
        """Return whether loss and parameters are finite after every step so far."""
        found = jax.device_get([(metrics["loss"], metrics["param_norm"]) for _, metrics in self._pending])
        return all(math.isfinite(loss) and math.isfinite(norm) for loss, norm in found)

    def flush_steps(self, unreadable: Sized = ()) -> None:
        """Wait for all dispatched steps, and write their mean metrics if due, with the count of unreadable images.

        Raises NonFiniteLossError for the first step whose loss, or whose new parameters, are not finite.
        """
        if not self._pending:
            return
        for step, metrics in zip(*zip(*self._pending, strict=True), strict=True):
            values = {key: float(value) for key, value in jax.device_get(metrics).items()}
            if not math.isfinite(values["loss"]):
                raise NonFiniteLossError(f"the loss of step {step} is {values['loss']}")
            if not math.isfinite(values["param_norm"]):
                raise NonFiniteLossError(f"the norm of the parameters after step {step} is {values['param_norm']}")
            self._since_log.append(values)
        self._pending = []
        if step % self.every == 0 or step == self.steps:
            means = {key: math.fsum(row[key] for row in self._since_log) / len(self._since_log) for key in values}
            means |= {"lr": values["lr"]} | self._speed(step)
            self._since_log = []
            self.add(step, means | ({"unreadable": len(unreadable)} if unreadable else {}))
            self._display.logged(step, means)

    def evaluated(self, step: int, results: Mapping[str, float]) -> None:
        """Write the results of the evaluators after a step, and the whole row of the step to disk."""
        self.add(step, results)
        self.flush()
        titles: dict[str, dict[str, float]] = {}
        for key, value in results.items():
            title, _, measure = key.rpartition("/")
            titles.setdefault(title, {})[measure] = value
        for title, values in titles.items():
            print(f"step {step:>{len(str(self.steps))}}/{self.steps}  {title}: {summary(values)}", flush=True)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add named values to the row of a step, and the seconds that the run took, without time between attempts."""
        if not values or not distributed.is_first():
            return
        if self._row.get("step") != step:
            self.flush()
            self._row = {"step": step}
        self._row |= {**values, "seconds": round(self._spent + time.perf_counter() - self._opened, 3)}
        for writer in self._writers:
            writer.write(step, values)

    def flush(self) -> None:
        """Write the current row to disk."""
        if self._row:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(self._row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._row = {}

    def close(self) -> None:
        """Write everything, and close the writers."""
        with contextlib.ExitStack() as stack:  # closes all writers even if one fails
            for writer in self._writers:
                stack.callback(writer.close)
            stack.callback(self._display.close)
            self.flush()

    def _show_step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Show a finished step; after the first steps, print how long the rest will take, if that is long."""
        done = step - self._clocked
        elapsed = time.perf_counter() - self._since - self._paused
        rate = done * self.batch_size / elapsed if done >= FIRST and elapsed > 0 else None
        if rate and not self._estimated:
            self._estimated = True
            self._display.estimated(self.steps - step, rate)
        self._display.stepped(step, metrics, rate)

    def _speed(self, step: int) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self._since - self._paused, 1e-9)
        rate = (step - self._clocked) * self.batch_size / elapsed
        speed = {
            "images_per_second": rate,
            "images_per_second_per_device": rate / jax.device_count(),
            "data_wait": min(1.0, self._waited / elapsed),
        }
        if self._seconds_at_peak is not None:
            speed["mfu"] = self._seconds_at_peak * rate / self.batch_size
        self.restart_clock(step)
        return speed
