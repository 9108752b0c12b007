"""Print messages at the beginning and end of a run, and draw its pictures in report/."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import distributed
from vit_jax.checkpoint import remote
from vit_jax.data.source import Image
from vit_jax.evals.evaluator import Arrays
from vit_jax.printable import line
from vit_jax.train.build import Run
from vit_jax.train.metrics import read_rows
from vit_jax.train.state import State, title

MANY_EPOCHS = 1000


def announce(run: Run, state: State, place: remote.Workdir) -> None:
    """Print a summary of the run that is about to start."""
    spec, done, steps = run.data.spec, int(state.step), run.parts.steps
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.frozen))
    part = f", {trained:,} of them trained" if frozen else ""
    arrays = ", ".join(f"{key} {'x'.join(map(str, x.shape))}" for key, x in spec.layout.items() if x.shape)
    kind = "images" if any(isinstance(field, Image) for field in spec.fields.values()) else "examples"
    classes = f" of {len(run.parts.task.class_names)} classes" if run.parts.task.class_names else ""
    print(
        f"{trained + frozen:,} parameters{part}; {spec.num_examples:,} training {kind} ({arrays}){classes}; {steps:,} steps "
        f"of {run.data.batch_size} on {run.mesh.size} {jax.devices()[0].device_kind} device(s), {run.parts.parallel}; "
        f"{place.shown(run.path)}"
    )
    epochs = steps * run.data.batch_size / spec.num_examples
    if epochs > MANY_EPOCHS:
        print(
            f"warning: {steps:,} steps of {run.data.batch_size} are {epochs:,.0f} epochs of {spec.num_examples:,} examples, which "
            "takes long and may overfit; --config.epochs=100 sets another length",
            flush=True,
        )
    if done:
        print(f"resuming at step {done}" if done < steps else f"already finished at step {done}", flush=True)


def finish(
    run: Run, state: State, place: remote.Workdir, measured: Mapping[str, Mapping[str, Arrays]]
) -> dict[str, Any]:
    """Print and return the last metrics of a finished run."""
    distributed.wait("everything is written")
    rows = read_rows(run.path / "metrics.jsonl")
    values: dict[str, Any] = next((row for row in reversed(rows) if row["step"] == run.parts.steps), {})
    suffixes = list(state.evaluated(run.parts.task))
    for name in (title(entry, suffix) for entry in run.evaluators for suffix in suffixes):
        if f"{name}/accuracy" in values:
            loss = f", loss {values[f'{name}/loss']:.4f}" if f"{name}/loss" in values else ""
            weights = ", of the weights without averaging" if name.endswith("_raw") else ""
            print(f"{name} accuracy {100 * values[f'{name}/accuracy']:.2f} %{loss}{weights}")
            if warning := no_better_than_guessing(measured.get(name, {}).get("", {}), run.parts.task.class_names):
                print(warning)
    print(f"report: {place.shown(run.path / 'report')}", flush=True)
    return values


def no_better_than_guessing(rows: Arrays, class_names: Sequence[str]) -> str:
    """Return a warning for a classifier that always answering the most frequent class would equal."""
    if "predicted" not in rows:
        return ""
    counts = np.bincount(rows["label"])
    share = counts.max() / counts.sum()
    if len(class_names) < 2 or np.mean(rows["label"] == rows["predicted"]) > share:
        return ""
    return (
        f"warning: always answering {line(class_names[int(counts.argmax())])!r} is right for {100 * share:.2f} % of these "
        "images, so the model does not generalize; begin from a pretrained one (configs/finetune.py), or train on more "
        "images or for fewer steps"
    )


def write_report(run: Run, measured: Mapping[str, Mapping[str, Arrays]]) -> None:
    """Write curves.png, and the confusions measured by the first evaluator of classes; see viz.classes."""
    if not distributed.is_first():
        return
    from vit_jax.viz.classes import Predictions, write_classes  # imports matplotlib, needed only at the end
    from vit_jax.viz.curves import draw_curves

    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    draw_curves(read_rows(run.path / "metrics.jsonl"), folder / "curves.png")
    named = ((name, passes[""]) for name, passes in measured.items() if "predicted" in passes.get("", {}))
    name, rows = next(named, (None, {}))
    if name in run.evaluators:
        write_classes(Predictions.of(rows, run.parts.task.class_names, run.evaluators[name][0].data), folder)
