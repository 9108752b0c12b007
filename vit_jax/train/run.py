"""The parts of a training run, composed from its config and checked before anything is compiled or written."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import optax

from vit_jax import inference, sharding
from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.saver import Saver, steps_in
from vit_jax.config import ConfigError, build, call, check_plain
from vit_jax.data.pipeline import Spec, TrainData
from vit_jax.evals.evaluator import Evaluator
from vit_jax.kinds import fits
from vit_jax.optim import make_optimizer
from vit_jax.optim.schedules import Schedule
from vit_jax.tasks.task import Task
from vit_jax.train.metrics import Recorder
from vit_jax.train.state import State, initial_state
from vit_jax.train.step import Step, compile_step, make_step
from vit_jax.types import Params, UserError

OPTIONAL = ("steps", "epochs", "sharding", "ema_decay", "init")


@dataclasses.dataclass
class Run:
    """The parts of a run, checked and ready to begin. `init` gives the first state, whose leaves lie as in `places`."""

    path: Path
    mesh: jax.sharding.Mesh
    parallel: Literal["jit", "pmap"]
    data: TrainData
    evaluators: dict[str, tuple[Evaluator, int | None]]  # with the steps between two evaluations; None is at the end
    steps: int
    task: Task
    train_step: Step
    init: Callable[[], State]
    begin_with: Params | None  # parameters of another run, in place of the initial ones
    places: State
    saver: Saver
    recorder: Recorder


def compose(config: dict[str, Any], path: Path) -> Run:
    """The parts that a plain config names, checked without compiling anything; then creates the workdir."""
    config = dict.fromkeys(OPTIONAL) | config
    check_plain(config)
    call("config", check_keys, config)
    workdirs.check(path, config)
    mesh = call("mesh", sharding.make_mesh, config["mesh"])
    sharding.check_batch(config["batch_size"], mesh)
    saver, recorder = call("checkpoint", Saver, config["checkpoint"]), call("log", Recorder, config["log"])

    data = call(
        "data",
        TrainData,
        config["data"] | {"source": build(config["data"].get("source"), "data.source")},
        batch_size=config["batch_size"],
        seed=config["seed"],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    check_holdouts(config["data"]["source"], config["evals"])
    evaluators = {name: make_evaluator(name, spec, data.spec) for name, spec in config["evals"].items()}
    best = saver.best
    if best is not None and best.partition("/")[0] not in evaluators:
        names = ", ".join(f"{name}/accuracy" for name in evaluators) or "none, as there are no evals"
        raise ConfigError(f"checkpoint.best is {best!r}, which no evaluator measures; expected such as {names}.")
    steps = config["steps"] or max(1, round(config["epochs"] * data.spec.num_examples / config["batch_size"]))

    model = build(config["model"], "model", num_classes=len(data.spec.class_names))
    task = build(config["task"], "task", model=model)
    tx, learning_rate = build_optimizer(config["optim"], steps)
    make = functools.partial(
        make_step,
        task,
        tx,
        learning_rate,
        build(config["grad"], "grad"),
        seed=config["seed"],
        ema_decay=config["ema_decay"],
    )
    ema = config["ema_decay"] is not None
    init = functools.partial(initial_state, task, tx, data.spec.image_shape, seed=config["seed"], ema=ema)
    places = sharding.tree_sharding(jax.eval_shape(init), mesh, config["sharding"] or ())
    train_step = compile_step(make, task, mesh, places, config["parallel"])
    trace(make(), init, data.spec, config["batch_size"] // (mesh.size if config["parallel"] == "pmap" else 1))
    begin_with = None
    if config["init"] is not None and not steps_in(path / "checkpoints"):
        begin_with = call("init", inference.load_params, config["init"], task=task, image_shape=data.spec.image_shape)

    facts = dataclasses.asdict(data.spec) | {"preprocess": eval_preprocess(config["evals"], data.spec)}
    workdirs.open_run(path, config, facts)
    return Run(
        path,
        mesh,
        config["parallel"],
        data,
        evaluators,
        steps,
        task,
        train_step,
        init,
        begin_with,
        places,
        saver,
        recorder,
    )


def build_optimizer(optim: Mapping[str, Any], steps: int) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimiser of a plain `optim` config for a run of so many steps, and its learning rate."""
    rule = build(optim.get("rule"), "optim.rule")
    schedule = build(optim.get("schedule"), "optim.schedule", steps=steps)
    return call("optim", make_optimizer, {**optim, "rule": rule, "schedule": schedule})


def trace(step: Step, init: Callable[[], State], spec: Spec, rows: int) -> None:
    """Traces the whole step without compiling it, so that a mistake in any part shows before the workdir exists."""
    images = jax.ShapeDtypeStruct((rows, *spec.image_shape), "uint8")
    labels = jax.ShapeDtypeStruct((rows,), "int32")
    jax.eval_shape(step, jax.eval_shape(init), {"image": images, "label": labels})


def check_keys(
    *,
    seed: int,
    batch_size: int,
    parallel: Literal["jit", "pmap"],
    mesh: dict[str, int | None],
    model: dict,
    task: dict,
    grad: dict,
    data: dict,
    optim: dict,
    checkpoint: dict,
    log: dict,
    evals: dict[str, dict],
    steps: int | None = None,
    epochs: float | None = None,
    sharding: list[tuple[str, list[str | None]]] | None = None,
    ema_decay: float | None = None,
    init: dict | None = None,
) -> None:
    """The keys of a training config and their kinds; configs/common.py says what they mean."""
    if (steps is None) == (epochs is None):
        raise ConfigError(f"config: set one of steps and epochs; found steps={steps} and epochs={epochs}.")
    if min(value for value in (batch_size, steps, epochs) if value is not None) <= 0:
        raise ConfigError(f"config: steps={steps}, epochs={epochs} and batch_size={batch_size} must be positive.")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ConfigError(f"config.ema_decay is {ema_decay}; expected a number in [0, 1).")


def make_evaluator(name: str, spec: Mapping[str, Any], train: Spec) -> tuple[Evaluator, int | None]:
    """The evaluator of an entry of `evals` and the steps between two runs of it; its data must match the training data."""
    every = spec.get("every")
    if every is not None and (not fits(every, int) or every < 1):
        raise ConfigError(f"evals.{name}.every is {every!r}; expected a number of steps.")
    evaluator = build({key: value for key, value in spec.items() if key != "every"}, f"evals.{name}")
    found = evaluator.spec
    if found.class_names != train.class_names:
        only = [
            sorted(set(a) - set(b))
            for a, b in ((train.class_names, found.class_names), (found.class_names, train.class_names))
        ]
        raise UserError(
            f"evals.{name}: its classes differ from those of the training data; only in training: {only[0][:5]}, "
            f"only in evaluation: {only[1][:5]}. Both need the same classes in the same order."
        )
    if found.image_shape != train.image_shape:
        raise UserError(
            f"evals.{name}.preprocess gives images of shape {found.image_shape}, data.preprocess {train.image_shape}; "
            "make the sizes equal."
        )
    return evaluator, every


def eval_preprocess(evals: Mapping[str, Mapping[str, Any]], spec: Spec) -> str:
    """How images are prepared for the trained model: as by the first evaluator, or a plain resize where there is none."""
    height, width, _ = spec.image_shape
    specs = (entry["preprocess"] for entry in evals.values() if "preprocess" in entry)
    return next(specs, f"resize(({height}, {width}))")


def check_holdouts(train: Mapping[str, Any], evals: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigError where an evaluation divides the folder of the training otherwise than the training does."""
    for name, entry in evals.items():
        test = entry.get("source", {})
        if any(source.get("type") != "folder.Folder" for source in (train, test)) or test.get("path") != train.get(
            "path"
        ):
            continue
        for key in ("holdout", "split_seed"):
            if train.get(key) != test.get(key):
                raise ConfigError(
                    f"data.source.{key} is {train.get(key)} but evals.{name}.source.{key} is {test.get(key)}, so that "
                    "images could be in both halves of the folder; give both the same value."
                )
