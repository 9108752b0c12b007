"""Where the metrics of a run go besides metrics.jsonl: TensorBoard events, and Weights & Biases."""

import importlib
import importlib.util
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter

from vit_jax.checkpoint import workdir as workdirs
from vit_jax.types import UserError

# In the workdir, so that a resumed run goes on as the same run of Weights & Biases.
WANDB_ID = "wandb_id.txt"


class Writer(Protocol):
    """Takes named values of a step, as often as they come, in the order of the steps."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Events in a workdir; those of steps after `step` count no more."""

    def __init__(self, workdir: Path, step: int):
        self._board = SummaryWriter(str(workdir), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """See Writer."""
        self._board.close()


def check_wandb() -> None:
    """Raises UserError where Weights & Biases is not installed."""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # a folder wandb/, such as it leaves where it was used, is no package
        raise UserError(
            'log.wandb needs Weights & Biases, which is not installed: pip install "vit_jax[wandb]", or leave log.wandb unset.'
        )


class WandB:
    """A run of Weights & Biases in a project, named as its workdir; WANDB_* variables say whose, where and whether offline."""

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
                f"log.wandb={project}: Weights & Biases cannot begin ({error}); log in with `wandb login`, or set "
                "WANDB_MODE=offline to send the run later with `wandb sync`."
            ) from None
        # What was sent before a kill comes again, the same, and would be refused with a warning for each step.
        self._first = self._run.starting_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See Writer."""
        self._run.finish(exit_code=1 if sys.exc_info()[0] else 0)
