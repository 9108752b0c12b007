"""Training speed on one accelerator, in one command of at most ten minutes: python experiments/speed_202611/gpu.py --out=DIR.

It needs jax, flax, optax, einops and jaxtyping, and torch and timm for what they are compared with. Rows come in the order of
their weight, are written to DIR/speed.md and DIR/speed.json as they come, and those that the time does not allow are named as
not run. Ours and timm's are timed in turns. --smoke is the same with a toy model, for a test of this file.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import platform
import statistics
import sys
import threading
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Ours and timm's share the memory of the device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax

from vit_jax import sharding
from vit_jax.grads.gradient import Plain
from vit_jax.models.sizes import parse_variant
from vit_jax.models.vit import ViT
from vit_jax.optim import make_optimizer
from vit_jax.optim.rules import adam
from vit_jax.optim.schedules import cosine
from vit_jax.perf import step as steps
from vit_jax.perf.peer import Peer
from vit_jax.perf.turns import in_turns, ratio
from vit_jax.tasks.classify import Classify
from vit_jax.train.parts import Parts
from vit_jax.train.state import initial_state
from vit_jax.train.step import make_step
from vit_jax.types import UserError

ROUND = 1.5  # seconds of a round
ROUNDS = 3
COLUMNS = {
    "images_per_second": "images/s",
    "ms_per_step": "ms/step",
    "mfu": "MFU %",
    "memory_gib": "memory GiB",
    "compile_seconds": "compile s",
    "first_step_seconds": "first step s",
    "peer_images_per_second": "timm images/s",
    "peer_memory_gib": "timm memory GiB",
    "peer_first_step_seconds": "timm first step s",
    "of_peer": "ours / timm",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One model to train in bfloat16 at one batch size, and the peer that is timed beside it."""

    size: str
    batch_size: int
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    peer: str | None = None

    @property
    def title(self) -> str:
        """What the table calls it."""
        changed = ", ".join(f"{key}={value}" for key, value in self.fields.items())
        return f"{self.size}, batch {self.batch_size}" + (f", {changed}" if changed else "")


def rows() -> Iterator[Row]:
    """The rows, those that matter most first; fields that ViT does not have are left out."""
    known = typing.get_type_hints(ViT)
    for size, batch_size in (("B/16", 256), ("S/16", 512), ("L/16", 128)):
        yield Row(size, batch_size, peer="timm:compile")
    attentions = (
        [one for one in typing.get_args(known.get("attention")) if one != ViT.attention] if "attention" in known else []
    )
    for attention in attentions:
        yield Row("B/16", 256, {"attention": attention})
    for change in ({"remat": "dots"}, {"remat": "full"}, {"scan": True}):
        yield Row("B/16", 256, change)
    for size, batch_size in (("S/16", 2048), ("B/16", 1024), ("L/16", 256), ("S/16", 128), ("B/16", 64), ("L/16", 32)):
        yield Row(size, batch_size)
    yield Row("B/16", 256, peer="timm:compile:channels_last")
    for attention in attentions:
        yield Row("L/16", 128, {"attention": attention})
    for change in ({"scan": True}, {"remat": "dots"}, {"scan": True, "remat": "full"}):
        yield Row("L/16", 128, change)
    yield Row("B/16", 256, peer="timm")


def smoke_rows() -> Iterator[Row]:
    """A toy of each kind of row."""
    yield Row("mu/16", 4, peer="timm")
    yield Row("mu/16", 2, {"scan": True, "remat": "full"})
    yield Row("mu/16", 2, {"heads": 1})  # a row that fails does not end the rest


class Measurement:
    """The rows so far, written whenever one is added; it ends the process when the time is over, whatever it does."""

    def __init__(self, out: Path, budget: float, image_size: int):
        self.out, self._end, self._image_size = out, time.monotonic() + budget, image_size
        self.results: list[dict[str, Any]] = []
        self.peer: Peer | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(budget, self._stop)
        self._timer.daemon = True
        self._timer.start()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def add(self, row: Row, facts: dict[str, Any]) -> None:
        """Enters a row, and writes all."""
        self.results.append({"row": row.title, "peer": row.peer} | facts)
        print(json.dumps(self.results[-1]), flush=True)
        self.write()

    def write(self) -> None:
        """Writes the table and the JSON file."""
        with self._lock:
            machine = {
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "python": platform.python_version(),
            }
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "speed.json").write_text(json.dumps({"machine": machine, "rows": self.results}, indent=1))
            (self.out / "speed.md").write_text(table(machine, self.results))

    def finish(self) -> None:
        """Writes all for the last time."""
        self._timer.cancel()
        self.write()

    def _stop(self) -> None:
        self.results.append({"row": "the time was over in the row after these", "peer": None, "error": "not finished"})
        self.write()
        if self.peer is not None:
            self.peer.end()
        os._exit(0)

    def run(self, row: Row) -> dict[str, Any]:
        """The figures of a row."""
        shape, classes = (self._image_size, self._image_size, 3), 1000
        fields = {"pool": "gap"} | parse_variant(row.size) | row.fields
        model = ViT(num_classes=classes, dtype="bfloat16", **fields)
        peer = None
        if row.peer is not None:
            own = {key: value for key, value in vars(model).items() if isinstance(value, int | float | str)}
            arguments = {"batch_size": row.batch_size, "image_shape": shape, "num_classes": classes, "model": own}
            more = {"dtype": "bfloat16", "platform": jax.default_backend(), "training": True}
            try:
                peer = self.peer = Peer(row.peer, limit=max(1.0, self.left), **arguments, **more)
            except UserError as error:  # ours is measured anyhow
                print(error, file=sys.stderr, flush=True)
        try:
            return self._timed(row, Classify(model), shape, classes, peer)
        finally:
            if peer is not None:
                self.peer = None
                peer.close()

    def _timed(
        self, row: Row, task: Classify, shape: tuple[int, int, int], classes: int, peer: Peer | None
    ) -> dict[str, Any]:
        tx, learning_rate = make_optimizer(adam(), cosine(100_000, 10_000), 1e-3, weight_decay=0.1, clip_norm=1.0)
        spec = {"image": jax.ShapeDtypeStruct(shape, "uint8"), "label": jax.ShapeDtypeStruct((), "int32")}
        parts = Parts(
            task=task,
            gradient=Plain(),
            init=functools.partial(initial_state, task, tx, spec, seed=0),
            make_step=functools.partial(make_step, task, tx, learning_rate, Plain(), seed=0, peak=1e-3),
            constants={"task": task.constants, "data": {}},
            batch={key: jax.ShapeDtypeStruct((row.batch_size, *x.shape), x.dtype) for key, x in spec.items()},
            steps=100_000,
            parallel="jit",
            seed=0,
            rules=(),
            fetch=None,
            norm_scaled=frozenset(),
        )
        mesh = sharding.make_mesh(jax.devices()[:1], data=1)
        needed, uncounted = parts.model_flops()
        program, training = steps.compile_training(parts, mesh, steps.random_batch(parts.batch, classes, mesh))
        count = max(2, min(200, int(ROUND / max(training(2) / 2, 1e-3))))
        found = in_turns({"ours": training} | ({} if peer is None else {"peer": peer}), count, ROUNDS)
        facts = steps.figures(found["ours"], row.batch_size, needed, jax.devices()[:1])
        begun = program.trace_seconds + program.compile_seconds + training.first_seconds
        facts |= {"memory_gib": program.memory and program.memory / 2**30, "compile_seconds": program.compile_seconds}
        facts |= {"first_step_seconds": begun, "steps_in_a_round": count, "uncounted_calls": uncounted}
        if peer is not None:
            facts["about_peer"] = peer.about
            facts["peer_images_per_second"] = row.batch_size / statistics.median(found["peer"])
            facts["peer_memory_gib"] = peer.memory and peer.memory / 2**30
            facts["peer_first_step_seconds"] = peer.first_seconds
            facts["of_peer"] = ratio(found["ours"], found["peer"])
        return facts


def table(machine: dict[str, str], results: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += [f"| row | beside | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for row in results:
        if "error" in row:
            cells = [f"not run: {row['error']}"] + [""] * (len(COLUMNS) - 1)
        else:
            cells = [written(key, row.get(key)) for key in COLUMNS]
        lines.append(f"| {row['row']} | {row['peer'] or ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def written(key: str, value: float | None) -> str:
    """A figure of the table."""
    if value is None:
        return ""
    if key == "mfu":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if key == "of_peer" else f"{value:.1f}"


def main() -> None:
    """Measures row after row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="default $OUT, or here")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all; default 540")
    parser.add_argument("--smoke", action="store_true", help="a toy model")
    flags = parser.parse_args()
    measurement = Measurement(flags.out, flags.budget, 32 if flags.smoke else 224)
    for row in smoke_rows() if flags.smoke else rows():
        # What a row without a peer takes at least; the timer ends those that take longer than is left.
        if not flags.smoke and measurement.left < 30:
            measurement.add(row, {"error": "no time left"})
            continue
        try:
            facts = measurement.run(row)
        except Exception as error:
            facts = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        measurement.add(row, facts)
        gc.collect()  # the arrays of a row that failed
    measurement.finish()


if __name__ == "__main__":
    main()
