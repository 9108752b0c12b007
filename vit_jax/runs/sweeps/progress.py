"""How far a run has come, read from its workdir while another process writes there."""

import json
import math
from pathlib import Path
from typing import Any

from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.saver import steps_in
from vit_jax.config.factory import steps_of
from vit_jax.types import UserError


class Progress:
    """Follows the metrics of a workdir, reading only what is new.

    step and loss: of the last row that has them; 0 and None before. steps: the length of the run, once it is known. measured:
    the values of the metric, as (step, value).
    """

    def __init__(self, workdir: Path, metric: str | None, mode: str):
        self.workdir, self.metric, self.mode = workdir, metric, mode
        self.steps: int | None = None
        self._forget()

    def _forget(self) -> None:
        self.step, self.loss = 0, None
        self.measured: list[tuple[int, float]] = []
        self._read, self._file = 0, 0

    def refresh(self) -> None:
        """Reads what was added; all of it again where a resumed run has replaced the file."""
        if self.steps is None:
            self.steps = length(self.workdir)
        try:
            with open(self.workdir / "metrics.jsonl", "rb") as file:
                status = (self.workdir / "metrics.jsonl").stat()
                if status.st_ino != self._file or status.st_size < self._read:
                    self._forget()
                    self._file = status.st_ino
                file.seek(self._read)
                lines = file.read().splitlines(keepends=True)
        except OSError:
            return
        for line in lines:
            if not line.endswith(b"\n"):  # still being written
                break
            self._read += len(line)
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row: Any = json.loads(line)
            self.step = int(row["step"])
        except (ValueError, TypeError, KeyError):
            return
        self.loss = row.get("loss", self.loss)
        value = row.get(self.metric)
        if isinstance(value, int | float) and not math.isnan(value):
            self.measured.append((self.step, value))

    @property
    def last(self) -> float | None:
        """The last value of the metric."""
        return self.measured[-1][1] if self.measured else None

    @property
    def best(self) -> float | None:
        """The best value of the metric so far."""
        return (max if self.mode == "max" else min)((value for _, value in self.measured), default=None)

    def saved(self) -> int:
        """The step of the last complete checkpoint, 0 before there is one."""
        return max(steps_in(self.workdir / "checkpoints"), default=0)

    def complete(self) -> bool:
        """Whether the last step was saved."""
        self.refresh()
        return self.steps is not None and self.saved() >= self.steps


def length(workdir: Path) -> int | None:
    """The steps of the run in a workdir; None before it has begun."""
    try:
        record = workdirs.read(workdir)
        return steps_of(record["config"], record["data"]["num_examples"])
    except (UserError, KeyError, TypeError):
        return None
