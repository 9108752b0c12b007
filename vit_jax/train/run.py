"""The parts of a training run, composed from its config and checked before anything is compiled or written."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from vit_jax import distributed as processes
from vit_jax import inference, sharding, trees
from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.saver import Saver
from vit_jax.chips import chip_of
from vit_jax.config.factory import ConfigError, build, call, steps_of
from vit_jax.config.kinds import fits
from vit_jax.data.pipeline import Spec, TrainData
from vit_jax.data.resident import ResidentData
from vit_jax.data.source import Source
from vit_jax.data.sources.table import Table
from vit_jax.evals.evaluator import Evaluator
from vit_jax.optim import make_optimizer
from vit_jax.optim.schedules import Schedule
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.distill import Teacher
from vit_jax.tasks.task import Task
from vit_jax.train import keys, origin
from vit_jax.train.cost import model_flops
from vit_jax.train.metrics import Recorder
from vit_jax.train.resident import Resident
from vit_jax.train.state import State, initial_state
from vit_jax.train.step import Step, compile_step, make_step
from vit_jax.types import Params, UserError, compile_regex


@dataclasses.dataclass
class Run:
    """The parts of a run, checked and ready to begin.

    `init` gives the first state from all parameters, or random ones for None; its leaves lie as in `places`.
    """

    path: Path
    mesh: jax.sharding.Mesh
    parallel: Literal["jit", "pmap"]
    data: TrainData
    evaluators: dict[str, tuple[Evaluator, int | None]]  # with the steps between two evaluations; None is at the end
    steps: int
    task: Task
    train_step: Step
    init: Callable[[Params | None], State]
    begin_with: Params | None  # the parameters of another model
    places: State
    saver: Saver
    recorder: Recorder
    step_at_best: float | None  # seconds that the devices would need on paper


def compose(config: dict[str, Any], path: Path) -> Run:
    """The parts that a plain config names, checked without compiling anything; then creates the workdir."""
    config, images, pretrained, facts = keys.settle(config, path)
    mesh = call("mesh", sharding.make_mesh, config["mesh"])
    sharding.check_batch(config["batch_size"], mesh)
    saver, recorder = call("checkpoint", Saver, config["checkpoint"]), call("log", Recorder, config["log"])

    data = make_data(config, images, sharding.local_rows(mesh, config["batch_size"]))
    check_holdouts(config["data"]["source"], config["evals"])
    evaluators = {name: make_evaluator(name, spec, data.spec) for name, spec in config["evals"].items()}
    for evaluator, _ in evaluators.values():
        evaluator.divide(lambda size: sharding.local_rows(mesh, sharding.shared_size(size, mesh)))
    check_best(saver.best, evaluators)
    steps = steps_of(config, data.spec.num_examples)

    resident = data if isinstance(data, ResidentData) else None
    task, init, shapes, places, train_step = build_step(config, data.spec, mesh, steps, resident)
    objective = task.task if isinstance(task, Resident) else task
    check_labels(objective, images)
    check_copies(objective, config["data"].get("repeats", 1))
    outputs = inference.output_shapes(task, shapes.weights, data.spec.image_shape)
    for evaluator, _ in evaluators.values():
        evaluator.check(outputs)
    first = None
    if pretrained is not None:
        first = origin.begin(pretrained, config["init"], task, data.spec, config["seed"])

    record = dataclasses.asdict(data.spec) | {"preprocess": eval_preprocess(config["evals"], data.spec)}
    processes.wait("every process has checked the workdir")
    if processes.is_first():
        workdirs.open_run(path, config, record | ({"init": facts} if facts else {}))
        if first is not None:
            origin.tell(first, config["init"]["ref"], path)
    processes.wait("the workdir is there")
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
        None if first is None else trees.nest(first.params),
        places,
        saver,
        recorder,
        step_at_best(objective, config, shapes, data.spec),
    )


def make_data(config: Mapping[str, Any], images: Source, rows: Sequence[int] | None = None) -> TrainData:
    """The training batches of a settled config, of which this process takes these rows, or all."""
    options = {key: value for key, value in config["data"].items() if key != "resident"}
    resident = config["data"].get("resident")
    if not fits(resident, bool | None):
        raise ConfigError(f"data.resident is {resident!r}; expected bool.")
    return call(
        "data",
        ResidentData if resident else TrainData,
        options | {"source": images},
        batch_size=config["batch_size"],
        seed=config["seed"],
        rows=rows,
    )


def step_at_best(task: Task, config: Mapping[str, Any], state: State, spec: Spec) -> float | None:
    """The seconds that the devices need on paper for the operations of a step; None where it is not known what they can do."""
    devices = jax.devices()
    chip = chip_of(devices)
    if chip is None:
        return None
    batch = batch_shapes(spec, config["batch_size"])
    return model_flops(task, build(config["grad"], "grad"), state, batch)[0] / (chip.flops * len(devices))


def build_parts(
    config: Mapping[str, Any], spec: Spec, steps: int, resident: ResidentData | None = None
) -> tuple[Task, Callable[..., State], Callable]:
    """The task, its first state as a function of all parameters or None, and the step as a function of a mapped axis."""
    model = build(config["model"], "model", num_classes=len(spec.class_names))
    teacher: dict[str, Any] = {} if config["teacher"] is None else {"teacher": load_teacher(config["teacher"], spec)}
    task: Task = build(config["task"], "task", model=model, **teacher)
    if resident is not None:
        task = Resident(task, resident)
    tx, learning_rate = build_optimizer(config["optim"], steps)
    make = functools.partial(
        make_step,
        task,
        tx,
        learning_rate,
        build(config["grad"], "grad"),
        seed=config["seed"],
        peak=config["optim"]["lr"],
        ema_decay=config["ema_decay"],
    )
    init = functools.partial(
        initial_state,
        task,
        tx,
        spec.image_shape,
        seed=config["seed"],
        ema=config["ema_decay"] is not None,
        freeze=config["freeze"] and compile_regex(config["freeze"], "freeze"),
    )
    return task, init, make


def build_step(
    config: Mapping[str, Any], spec: Spec, mesh: jax.sharding.Mesh, steps: int, resident: ResidentData | None = None
):
    """The task, its first state (see build_parts), the state's shapes and places, and the step."""
    task, init, make = build_parts(config, spec, steps, resident)
    rules = config["sharding"] or ()
    shapes = jax.eval_shape(init, None)
    places = sharding.tree_sharding(shapes, mesh, rules)
    batch = batch_shapes(spec, config["batch_size"])
    if resident is not None:
        batch = {"index": jax.ShapeDtypeStruct((config["batch_size"],), "int32"), "label": batch["label"]}
    train_step = compile_step(make, task, mesh, shapes, batch, config["parallel"], seed=config["seed"], rules=rules)
    return task, init, shapes, places, train_step


def batch_shapes(spec: Spec, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of training images and labels, as shapes."""
    labels = jax.ShapeDtypeStruct((batch_size, *spec.label_shape), "float32" if spec.label_shape else "int32")
    return {"image": jax.ShapeDtypeStruct((batch_size, *spec.image_shape), "uint8"), "label": labels}


def check_best(best: str | None, evaluators: Mapping[str, Any]) -> None:
    """Raises ConfigError where no evaluator measures the metric whose best checkpoint is to be kept."""
    if best is not None and best.partition("/")[0].removesuffix("_raw") not in evaluators:
        names = ", ".join(f"{name}/accuracy" for name in evaluators) or "none, as there are no evals"
        raise ConfigError(f"checkpoint.best is {best!r}, which no evaluator measures; expected such as {names}.")


def build_optimizer(optim: Mapping[str, Any], steps: int) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimiser of a plain `optim` config for a run of so many steps, and its learning rate."""
    rule = build(optim.get("rule"), "optim.rule")
    schedule = build(optim.get("schedule"), "optim.schedule", steps=steps)
    return call("optim", make_optimizer, {**optim, "rule": rule, "schedule": schedule})


def load_teacher(reference: str, train: Spec) -> Teacher:
    """The model to learn from; raises UserError where it is untrained or of other classes than the data."""
    loaded = inference.load(reference)
    if loaded.names_known and loaded.class_names != train.class_names:
        raise UserError(
            f"The teacher {reference} has {len(loaded.class_names)} classes such as {loaded.class_names[:3]}, the training "
            f"data {len(train.class_names)} such as {train.class_names[:3]}; they must be the same, in the same order."
        )
    if loaded.has_untrained_head:
        raise UserError(
            f"The head of the teacher {reference} is untrained, so it has nothing to teach; name a trained model."
        )
    return Teacher(loaded.task, loaded.params, loaded.image_shape)


def check_labels(task: Task, images: Source) -> None:
    """Raises UserError where a classifier would be trained on numbers that are no labels."""
    if not isinstance(task, Classify) or not isinstance(images, Table):
        return
    for index in range(len(images)):
        if not np.isin(images.label(index), (0.0, 1.0)).all():
            raise UserError(
                f"{images.name(index)} has the numbers {images.label(index)[:5].tolist()}, expected 0 or 1 for each class; to "
                "predict numbers take task type='regress.Regress'."
            )


def check_copies(task: Task, repeats: int) -> None:
    """Raises ConfigError where images would be mixed with copies of themselves."""
    mix = getattr(task, "mix", None)
    if repeats > 1 and mix is not None and mix.partner == "roll":
        raise ConfigError(
            f"data.repeats={repeats} puts the copies of an image side by side, and task.mix.partner='roll' would mix them with "
            "each other; expected task.mix.partner='flip'."
        )


def make_evaluator(name: str, spec: Mapping[str, Any], train: Spec) -> tuple[Evaluator, int | None]:
    """The evaluator of an entry of `evals` and the steps between two runs of it; its data must match the training data."""
    every = spec.get("every")
    if every is not None and (not fits(every, int) or every < 1):
        raise ConfigError(f"evals.{name}.every is {every!r}; expected a number of steps.")
    evaluator = build({key: value for key, value in spec.items() if key != "every"}, f"evals.{name}")
    found = evaluator.spec
    if (found.class_names, found.label_shape) != (train.class_names, train.label_shape) and not evaluator.own_classes:
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
