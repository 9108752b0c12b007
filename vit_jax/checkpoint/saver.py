"""Checkpoints of a run: flat dictionaries of arrays, written by orbax."""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from vit_jax import stores, trees
from vit_jax.types import Steps, UserError

Flat = dict[str, Any]
Place = str | os.PathLike[str]
# The last file of a checkpoint on stores, where nothing can be renamed.
COMPLETE = "commit_success.txt"

# Orbax logs its normal work as warnings through absl.
logging.getLogger("absl").setLevel(logging.ERROR)


class Saver:
    """Asynchronous, atomic checkpoints.

    every: steps between checkpoints. keep: how many of the last to keep. best: a metric, such as "test/accuracy", whose best
    checkpoint is kept too; best_mode says whether "max" or "min" is best.
    """

    def __init__(
        self, every: Steps = 1000, keep: Steps = 1, best: str | None = None, best_mode: Literal["max", "min"] = "max"
    ):
        if every < 1 or keep < 1:
            raise UserError(f"checkpoint.every={every} and checkpoint.keep={keep} must be at least 1.")
        self.every, self.keep, self.best, self.best_mode = every, keep, best, best_mode

    def open(self, directory: Place) -> None:
        """Begin to keep checkpoints in `directory`; half-written ones after a kill are removed."""
        best, worst = self.best, -math.inf if self.best_mode == "max" else math.inf
        preserve: list[Any] = [policies.LatestN(self.keep)]
        if best:
            preserve.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics.get(best, worst),
                    reverse=self.best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            best_fn=(lambda metrics: metrics[best]) if best else None,
            best_mode=self.best_mode,
            cleanup_tmp_directories=True,
        )
        self.directory = _absolute(directory)
        with _as_user_error(self.directory):
            self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, flat: Flat, metrics: Mapping[str, float]) -> None:
        """Begin to write a checkpoint; the arrays may be donated once this returns."""
        with _as_user_error(self.directory):
            if step not in self.manager.all_steps():
                self.manager.save(
                    step, args=ocp.args.PyTreeSave(flat), metrics=dict(metrics) if self.best in metrics else None
                )

    def latest(self) -> int | None:
        """Return the step of the last complete checkpoint."""
        with _as_user_error(self.directory):
            self.manager.wait_until_finished()
            return self.manager.latest_step()

    def close(self) -> None:
        """Wait until everything is written."""
        with _as_user_error(self.directory):
            self.manager.wait_until_finished()
            self.manager.close()


def _absolute(directory: Place) -> os.PathLike[str]:
    return epath.Path(directory) if stores.is_remote(directory) else Path(directory).absolute()


def _as_user_error(directory: Place) -> contextlib.AbstractContextManager[None]:
    """On a store, turn errors of access into a UserError."""
    return stores.readable_errors(str(directory)) if stores.is_remote(directory) else contextlib.nullcontext()


def check_path(path: Place) -> None:
    """Raise UserError for a path that Orbax cannot open, because it is not UTF-8 or has a null character."""
    text = str(path) if stores.is_remote(path) else os.path.abspath(path)
    if text.encode(errors="replace").decode() != text or "\0" in text:
        raise UserError(
            f"{text!r} cannot be the path of checkpoints; expected UTF-8 without null characters: rename it."
        )


def steps_in(directory: Place) -> list[int]:
    """Return the steps of the complete checkpoints in a folder, in order."""
    if stores.is_remote(directory):
        found = (name.split("/") for name in stores.entries(str(directory)))
        return sorted(int(name[0]) for name in found if name[1:] == [COMPLETE] and name[0].isdecimal())
    path = Path(directory)
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdecimal() and p.is_dir()) if path.is_dir() else []


@contextlib.contextmanager
def _reading(directory: Place, step: int) -> Iterator[ocp.CheckpointManager]:
    """Open a checkpoint for reading; whatever its damage raises becomes a UserError."""
    check_path(directory)
    hook = sys.unraisablehook
    # After the first failed read orbax closes its event loop, and each read still running would print a traceback.
    sys.unraisablehook = lambda late: None if "Event loop is closed" in str(late.exc_value) else hook(late)
    options = ocp.CheckpointManagerOptions(read_only=True)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with ocp.CheckpointManager(_absolute(directory), options=options, item_handlers=handler) as manager:
            yield manager
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError) as error:
        raise UserError(
            f"The checkpoint {directory}/{step} cannot be read now ({error}); solve that and try again."
        ) from None
    except Exception as error:
        if stores.is_remote(directory):  # where not only the file can fail
            raise UserError(
                f"The checkpoint {directory}/{step} cannot be read ({type(error).__name__}); try again, and if that does not "
                "help, use another step."
            ) from None
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise UserError(
            f"The checkpoint {directory}/{step} is damaged ({reason}); use another step, or remove it to resume from the "
            "one before."
        ) from None
    sys.unraisablehook = hook


def shapes_of(directory: Place, step: int) -> Flat:
    """Return the names of a checkpoint's arrays, each with .shape and .dtype."""
    with _reading(directory, step) as manager:
        return trees.flatten(manager.item_metadata(step).tree)


def restore(directory: Place, step: int, like: Flat, parts: tuple[str, ...] = ("",)) -> Flat:
    """Return the arrays of a checkpoint with the names in `like`, whose leaves have shape, dtype and sharding.

    Only the names that begin with one of `parts` are read. Raises UserError that lists the names and shapes that differ.
    """
    found = {name: leaf for name, leaf in shapes_of(directory, step).items() if name.startswith(parts)}
    different = trees.differences(found, like)
    if different:
        shown = "\n  ".join(different[:15] + ([f"... and {len(different) - 15} more"] if len(different) > 15 else []))
        raise UserError(f"The checkpoint {directory}/{step} does not fit this model:\n  {shown}")
    with _reading(directory, step) as manager:
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        return manager.restore(step, args=ocp.args.PyTreeRestore(like, restore_args, partial_restore=True))
