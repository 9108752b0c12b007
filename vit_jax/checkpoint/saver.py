"""Checkpoints of a run: flat dictionaries of arrays, written by orbax."""

import asyncio
import contextlib
import functools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from vit_jax import distributed, stores, trees
from vit_jax.checkpoint.checksums import checksums
from vit_jax.types import Steps, UserError

Flat = dict[str, Any]
Place = str | os.PathLike[str]
T = TypeVar("T")
# The file that is written last in a checkpoint on a store, because stores cannot rename.
COMPLETE = "commit_success.txt"

# The folder of the arrays in a checkpoint, its file of metadata, and the key of the checksums, by array name, in these.
ARRAYS, METADATA, CHECKSUMS = "default", "_CHECKPOINT_METADATA", "checksums"

# Orbax logs its normal work as warnings through absl, and damage as errors before it raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class DamagedError(UserError):
    """A checkpoint cannot be read, or contains other arrays than were saved."""


class Saver:
    """Asynchronous, atomic checkpoints.

    every: steps between checkpoints. keep: how many of the latest to keep. best: a metric, such as "test/accuracy",
    whose best checkpoint is also kept; best_mode: whether "max" or "min" is best.
    """

    def __init__(
        self, every: Steps = 1000, keep: Steps = 1, best: str | None = None, best_mode: Literal["max", "min"] = "max"
    ):
        if every < 1 or keep < 1:
            raise UserError(f"checkpoint.every={every} and checkpoint.keep={keep} must be at least 1.")
        self.every, self.keep, self.best, self.best_mode = every, keep, best, best_mode

    def open(self, directory: Place) -> None:
        """Start keeping checkpoints in `directory`; checkpoints that a killed run left incomplete are removed."""
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
            for step in steps_in(self.directory):  # orbax reads the metadata of all
                _read(self.directory, step, lambda _, step: _custom_metadata(self.directory, step))
            self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, flat: Flat, metrics: Mapping[str, float]) -> None:
        """Start writing a checkpoint; the arrays may be donated once this returns."""
        with _as_user_error(self.directory):
            if not stores.is_remote(self.directory):
                os.stat(self.directory)  # orbax would recreate it in a workdir that was renamed
            if step not in self.manager.all_steps():
                self.manager.save(
                    step,
                    args=ocp.args.PyTreeSave(flat),
                    metrics=dict(metrics) if self.best in metrics else None,
                    custom_metadata={CHECKSUMS: checksums(flat)},
                )

    def latest(self) -> int | None:
        """Wait for checkpoints being written, and return the step of the latest one."""
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
    """On a store, convert access errors into a UserError."""
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


def _custom_metadata(directory: Place, step: int) -> dict[str, Any]:
    """Return the metadata saved with the arrays of a checkpoint; raise DamagedError if it cannot be parsed."""
    path = epath.Path(directory) / str(step) / METADATA
    try:
        found = json.loads(path.read_text())
        # Orbax refuses, or ignores, other keys when it next opens the folder.
        if not {"metrics", "item_handlers", "init_timestamp_nsecs", "custom_metadata"} <= found.keys():
            raise ValueError(f"it has the keys {sorted(found)}")
        return dict(found["custom_metadata"] or {})
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"The checkpoint {directory}/{step} is damaged ({METADATA}: {str(error)[:200]})") from None


@contextlib.contextmanager
def _reading(directory: Place, step: int) -> Iterator[ocp.Checkpointer]:
    """Open a checkpoint for reading; errors that its damage raises become UserErrors."""
    check_path(directory)
    hook = sys.unraisablehook
    # After the first failed read orbax closes its event loop, and each read still running would print a traceback.
    sys.unraisablehook = lambda late: (
        None if asyncio.iscoroutine(late.object) or "Event loop is closed" in str(late.exc_value) else hook(late)
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            yield checkpointer
    except DamagedError:
        raise
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
        raise DamagedError(f"The checkpoint {directory}/{step} is damaged ({reason})") from None
    sys.unraisablehook = hook


def _read(directory: Place, step: int, read: Callable[[ocp.Checkpointer, int], T]) -> T:
    """Return read(checkpointer, step); if the checkpoint is damaged, raise DamagedError, naming an older intact one."""
    try:
        with _reading(directory, step) as checkpointer:
            return read(checkpointer, step)
    except DamagedError as error:
        damage = str(error)
    for older in reversed([known for known in steps_in(directory) if known < step]):
        with contextlib.suppress(UserError):
            with _reading(directory, older) as checkpointer:
                read(checkpointer, older)
            break
    else:
        raise DamagedError(f"{damage}, and no older one there is good; use another step or a copy of it.")
    raise DamagedError(
        f"{damage}. Step {older} is good: use it as @{older}, or remove {directory}/{step} to resume from it."
    )


def shapes_of(directory: Place, step: int) -> Flat:
    """Return the names of a checkpoint's arrays, each with .shape and .dtype."""

    def shapes(checkpointer: ocp.Checkpointer, step: int) -> Flat:
        return trees.flatten(checkpointer.metadata(_arrays(directory, step)).item_metadata.tree)

    return _read(directory, step, shapes)


def restore(directory: Place, step: int, like: Flat, parts: tuple[str, ...] = ("",)) -> Flat:
    """Return the arrays of a checkpoint with the names in `like`, whose leaves have shape, dtype and sharding.

    Only the names that begin with one of `parts` are read. Raises UserError, listing the names and shapes that differ,
    or if an array differs from its checksum.
    """
    found = {name: leaf for name, leaf in shapes_of(directory, step).items() if name.startswith(parts)}
    different = trees.differences(found, like)
    if different:
        shown = "\n  ".join(different[:15] + ([f"... and {len(different) - 15} more"] if len(different) > 15 else []))
        raise UserError(f"The checkpoint {directory}/{step} does not fit this model:\n  {shown}")
    # Read in the saved dtypes, since the checksums are of the saved arrays.
    saved = {
        name: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(found[name].dtype), sharding=leaf.sharding)
        for name, leaf in like.items()
    }
    flat = _read(directory, step, functools.partial(_restore_checked, directory, saved))
    return {name: flat[name].astype(leaf.dtype) for name, leaf in like.items()}


def _arrays(directory: Place, step: int) -> os.PathLike[str]:
    return epath.Path(_absolute(directory)) / str(step) / ARRAYS


def _restore_checked(directory: Place, like: Flat, checkpointer: ocp.Checkpointer, step: int) -> Flat:
    """Return the arrays of a checkpoint; raise DamagedError if they differ from their checksums."""
    expected = _custom_metadata(directory, step).get(CHECKSUMS)
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(like, restore_args, partial_restore=True)
    flat = checkpointer.restore(_arrays(directory, step), args=args)
    if expected is None:
        _note_unchecked(str(directory))
        return flat
    wrong = [name for name, found in checksums(flat).items() if expected.get(name) != found]
    if wrong:
        raise DamagedError(
            f"The checkpoint {directory}/{step} is damaged: {len(wrong)} of {len(flat)} arrays differ from their checksums, such "
            f"as {wrong[0]}"
        )
    return flat


@functools.cache
def _note_unchecked(directory: str) -> None:
    """Print, once for a folder, that its checkpoints have no checksums."""
    if distributed.is_first():
        print(f"note: {directory} has no checksums, so damage to its arrays cannot be noticed", file=sys.stderr)
