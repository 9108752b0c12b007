"""Follow the progress of a run through its workdir, while another process writes to it."""

import math
from pathlib import Path

from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.saver import steps_in
from vit_jax.config.factory import steps_of
from vit_jax.train.metrics import read_row
from vit_jax.types import UserError


class RunProgress:
    """Follows a workdir's metrics.jsonl, reading only new rows.

    step and loss: their last values; 0 and None before the first row. steps: the length of the run, once known. measured: the
    values of the metric, as (step, value).
    """

    def __init__(self, workdir: Path, metric: str | None, mode: str):
        self.workdir, self.metric, self.mode = workdir, metric, mode
        self.steps: int | None = None
        self._reset()

    def _reset(self) -> None:
        self.step, self.loss = 0, None
        self.measured: list[tuple[int, float]] = []
        self._offset, self._inode = 0, 0

    def refresh(self) -> None:
        """Read new rows; start over if a resumed run has replaced the file."""
        if self.steps is None:
            self.steps = total_steps(self.workdir)
        try:
            with open(self.workdir / "metrics.jsonl", "rb") as file:
                status = (self.workdir / "metrics.jsonl").stat()
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._reset()
                    self._inode = status.st_ino
                file.seek(self._offset)
                lines = file.read().splitlines(keepends=True)
        except OSError:
            return
        for line in lines:
            if not line.endswith(b"\n"):  # incomplete
                break
            self._offset += len(line)
            self._add(line)

    def _add(self, line: bytes) -> None:
        row = read_row(line)
        if row is None:
            return
        self.step = row["step"]
        self.loss = row.get("loss", self.loss)
        value = row.get(self.metric or "")
        if value is not None and not math.isnan(value):
            self.measured.append((self.step, value))

    @property
    def last(self) -> float | None:
        return self.measured[-1][1] if self.measured else None

    @property
    def best(self) -> float | None:
        return (max if self.mode == "max" else min)((value for _, value in self.measured), default=None)

    def saved_step(self) -> int:
        """Return the step of the last complete checkpoint, or 0."""
        return max(steps_in(self.workdir / "checkpoints"), default=0)

    def is_complete(self) -> bool:
        self.refresh()
        return self.steps is not None and self.saved_step() >= self.steps


def total_steps(workdir: Path) -> int | None:
    """Return the number of steps of a run, or None before it has started."""
    try:
        record = workdirs.read(workdir)
        return steps_of(record["config"], record["data"]["num_examples"])
    except (UserError, KeyError, TypeError):
        return None
