"""Writers of metrics besides metrics.jsonl: TensorBoard events, and Weights & Biases."""

import contextlib
import importlib
import importlib.util
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from vit_jax.checkpoint import workdir as workdirs
from vit_jax.types import UserError

# In the workdir, so that a resumed run continues the same run of Weights & Biases.
WANDB_ID = "wandb_id.txt"
FLUSH_SECONDS = 10


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """Let imports of a module that is not imported yet fail as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


class Writer(Protocol):
    """Write named values of steps, in the order of the steps."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Write TensorBoard events in a workdir; events after `step` are discarded.

    They are written in the main thread: SummaryWriter's thread ends at the first disk error, and its queue then blocks
    forever.
    """

    def __init__(self, workdir: Path, step: int):
        # tensorboardX imports torch where it is installed, which takes seconds and which scalars do not need.
        with hidden("torch"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        self._file = EventsWriter(str(workdir / "events"))
        start = SessionLog(status=SessionLog.START)  # discards events from here on
        self._file.write_event(Event(step=step + 1, session_log=start, wall_time=time.time()))
        self._flushed = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        for name, value in values.items():
            self._file.write_event(self._event(step=step, summary=self._scalar(name, value), wall_time=time.time()))
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """See Writer."""
        self._file.close()


def check_wandb() -> None:
    """Raise UserError if Weights & Biases is not installed."""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # a folder wandb/, which it leaves behind, is not the package
        raise UserError(
            'log.wandb needs Weights & Biases, which is not installed: pip install "vit_jax[wandb]", or leave log.wandb unset.'
        )


class WandB:
    """A run of Weights & Biases in a project, named like its workdir; WANDB_* variables set account, server and mode."""

    def __init__(self, workdir: Path, project: str):
        wandb = importlib.import_module("wandb")
        path = workdir / WANDB_ID
        if not path.exists():
            workdirs.write_text(path, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text(encoding="utf-8").strip(),
                name=workdir.absolute().name,
                dir=str(workdir),
                config=workdirs.read(workdir)["config"],
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(
                f"log.wandb={project}: Weights & Biases cannot start ({error}); log in with `wandb login`, or set "
                "WANDB_MODE=offline to send the run later with `wandb sync`."
            ) from None
        # Steps sent before a kill run again, and would each be rejected with a warning.
        self._first = self._run.starting_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See Writer."""
        self._run.finish(exit_code=1 if sys.exc_info()[0] else 0)
