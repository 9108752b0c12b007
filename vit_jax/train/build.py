"""Build the parts of a run from its config, and check them before anything is compiled or written."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.errors
import jax
import numpy as np

from vit_jax import distributed, inference, sharding, trees
from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.lock import locked
from vit_jax.checkpoint.saver import Saver, steps_in
from vit_jax.checkpoint.transfer.merge import Merged
from vit_jax.chips import chip_of, device_memory
from vit_jax.config import factory, schema
from vit_jax.config.factory import ConfigError, call, quoted
from vit_jax.config.hints import fits, hint_name
from vit_jax.data.examples import Layout
from vit_jax.data.pipeline import DataSpec, TrainData
from vit_jax.data.resident import ResidentData
from vit_jax.data.source import Source, UnreadableImage, decoded
from vit_jax.data.tokenizers import FILE as TOKENIZER
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.data.transforms.preprocess import parse, without_texts
from vit_jax.evals.evaluator import Evaluator, check_needs, shard
from vit_jax.grads.gradient import Gradient
from vit_jax.inference import Loaded
from vit_jax.optim import make_optimizer, norm_scaled
from vit_jax.tasks.task import Task, backbone_names, reading, with_image_shape
from vit_jax.tasks.teacher import Teacher
from vit_jax.train import begin_from, settings
from vit_jax.train.metrics import Recorder
from vit_jax.train.parts import Parts
from vit_jax.train.state import State, initial_state, title
from vit_jax.train.step import Step, make_step
from vit_jax.types import Params, Steps, UserError, compile_regex


def build_parts(config: Mapping[str, Any], data: DataSpec, train_data: TrainData | None = None) -> Parts:
    """Build the computation of training from a completed config and the layout of its data; nothing is compiled.

    train_data: the training data, which may keep arrays on the devices.
    """
    steps = factory.steps_of(config, data.num_examples)
    spec = with_image_shape(batch_shapes(data.layout))
    teacher = {}
    if config["teacher"] is not None:
        target = factory.resolve(config["task"].get("type"), "vit_jax.tasks", "task")
        if "teacher" not in factory.parameters(target):
            raise ConfigError(
                f"config.teacher is {config['teacher']!r}, but {target.__name__} takes no teacher; give a task "
                "that takes one, such as type='distill.Distill', or leave teacher unset."
            )
        teacher = {
            "teacher": load_teacher(
                config["teacher"], data.class_names if "class_names" in factory.parameters(target) else None
            )
        }
    task: Task = factory.build_task(
        config["task"], config["model"], class_names=data.class_names,
        fields=data.fields, spec=spec, steps=steps, extra=teacher,
    )  # fmt: skip
    gradient: Gradient = factory.build(config["grad"], "grad")
    check_task(task, gradient, data)
    with reading(task, spec):
        params = jax.eval_shape(lambda: task.init(jax.random.key(0), spec))
    optim = config["optim"]
    rule = factory.build(optim.get("rule"), "optim.rule")
    schedule = factory.build(optim.get("schedule"), "optim.schedule", steps=steps)
    layers = functools.cache(lambda: backbone_names(task, params).layers(params))
    tx, learning_rate = call(
        "optim", make_optimizer, {**optim, "rule": rule, "schedule": schedule}, layers=layers, steps=steps
    )
    fetch = None if train_data is None else train_data.fetch
    layout = data.layout if train_data is None else train_data.layout
    ema_decay, seed, freeze = config["ema_decay"], config["seed"], config["freeze"]
    if ema_decay is not None and set(
        jax.eval_shape(task.evaluated, params, jax.eval_shape(task.init_state, params))
    ) != {""}:
        raise ConfigError(
            f"config.ema_decay is {ema_decay}, but {type(task).__name__} keeps averages of its own; leave ema_decay unset."
        )
    return Parts(
        task=task,
        gradient=gradient,
        init=functools.partial(
            initial_state, task, tx, spec,
            seed=seed, ema=ema_decay is not None, freeze=None if freeze is None else compile_regex(freeze, "freeze"),
        ),
        make_step=functools.partial(
            make_step, task, tx, learning_rate, gradient,
            seed=seed, peak=float(optim["lr"]), ema_decay=ema_decay, fetch=fetch,
        ),
        constants={"task": task.constants, "data": {} if train_data is None else train_data.device_arrays},
        batch=batch_shapes(layout, config["batch_size"]),
        steps=steps,
        parallel=config["parallel"],
        seed=seed,
        rules=config["sharding"] or (),
        fetch=fetch,
        norm_scaled=norm_scaled(rule, params, optim),
    )  # fmt: skip


def check_task(task: Task, gradient: Gradient, data: DataSpec) -> None:
    """Raise UserError if a task cannot take the patches of the data, or batches split as the gradient splits them."""
    if "patches" in data.layout and not task.any_shape:
        raise UserError(
            f"{type(task).__name__} takes whole images, and data.preprocess makes patches; leave patchify out of it, or take a "
            "task such as classify.Classify or siglip.Siglip."
        )
    if gradient.splits_batch and not task.decomposable:
        raise UserError(
            f"config.grad takes the gradient of parts of a batch, but the loss of {type(task).__name__} is not a mean over "
            "examples (decomposable=False); use grad type='gradient.Plain', and mesh.fsdp or model.remat to save memory."
        )


def batch_shapes(layout: Layout, batch_size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of an example's arrays, or of a global batch of them."""
    batch = () if batch_size is None else (batch_size,)
    return {key: jax.ShapeDtypeStruct((*batch, *x.shape), x.dtype) for key, x in layout.items()}


@dataclasses.dataclass
class Run:
    """The parts of a run, checked and ready to begin."""

    path: Path
    config: dict[str, Any]
    record: dict[str, Any]  # facts about the data
    merged: Merged | None  # the model that the run is initialized from
    mesh: jax.sharding.Mesh
    parts: Parts
    data: TrainData
    evaluators: dict[str, tuple[Evaluator, int | None]]  # with the steps between evaluations; None is only at the end
    train_step: Step
    shardings: State
    saver: Saver
    recorder: Recorder
    tokenizer: Tokenizer | None  # of the captions
    seconds_at_peak: float | None  # of a step, if the devices only ran its operations, at their peak

    @property
    def initial_params(self) -> Params | None:
        return None if self.merged is None else trees.nest(self.merged.params)

    def due_at(self, step: int) -> list[str]:
        """Return the names of the evaluators that run after a step; all of them after the last one."""
        last = step == self.parts.steps
        return [name for name, (_, every) in self.evaluators.items() if last or (every and step % every == 0)]

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Create the workdir, or record config changes since the run began, and lock it; only in the first process."""
        distributed.wait("every process has checked the workdir")
        with contextlib.ExitStack() as stack:
            if distributed.is_first():
                stack.enter_context(locked(self.path))
                workdirs.check(self.path, self.config)  # another run may have started in the meantime
                workdirs.open_run(self.path, self.config, self.record)
                if self.tokenizer is not None:
                    workdirs.write_text(self.path / TOKENIZER, self.tokenizer.packed())
                if self.merged is not None:
                    begin_from.write_merge_report(self.merged, self.config["init"]["ref"], self.path)
            distributed.wait("the workdir is there")
            yield


def build(config: dict[str, Any], path: Path) -> Run:
    """Build the parts of a run from a plain config; nothing is compiled or written."""
    config = schema.check(config)
    source: Source = factory.build(config["data"].get("source"), "data.source")
    pretrained, facts = settings.load_init(config["init"], path)
    config = schema.check(settings.fill_in(config, facts, source))
    workdirs.check(path, config)

    mesh = call("mesh", sharding.make_mesh, config["mesh"])
    sharding.check_batch(config["batch_size"], mesh)
    saver, recorder = call("checkpoint", Saver, config["checkpoint"]), call("log", Recorder, config["log"])
    data = build_data(config, source, sharding.local_rows(mesh, config["batch_size"]))
    check_holdouts(config["data"]["source"], config["evals"])
    evaluators = {name: build_evaluator(name, entry) for name, entry in config["evals"].items()}

    parts = build_parts(config, data.spec, data)
    shardings = parts.shardings(mesh)
    check_memory(parts.shapes, shardings)
    train_step = compile_step(parts, mesh)
    check_repeats(parts.task, config["data"].get("repeats") or 1)
    kinds = jax.eval_shape(lambda state: state.evaluated(parts.task), parts.shapes)
    check_best(saver.best, [title(name, kind) for name in evaluators for kind in kinds])
    weights = kinds[""]
    for name, (evaluator, _) in evaluators.items():
        check_evaluator(name, evaluator, parts.task, weights, data.spec)
        shard(evaluator, lambda size: sharding.local_rows(mesh, sharding.shared_size(size, mesh)))
        for evaluated in evaluator.passes.values():
            evaluated.allow_unreadable(data.max_unreadable)
    recorded = workdirs.read(path)["data"] if (path / "config.json").exists() else {}
    in_use = usage(config["data"].get("eval_preprocess"), config["evals"], evaluators, data.spec, source, recorded)
    spec = with_image_shape(batch_shapes(data.spec.layout))
    merged = None
    if pretrained is not None:
        merged = begin_from.begin(pretrained, config["init"], parts.task, spec, config["seed"])
    if not steps_in(path / "checkpoints"):
        check_first(parts, None if merged is None else trees.nest(merged.params))

    tokenize = parse(config["data"]["preprocess"], source.fields).tokenize
    texts = {} if tokenize is None else {"length": tokenize.length, "tokenizer": tokenize.tokenizer.digest}
    record = {
        "class_names": parts.task.class_names,
        "num_examples": data.spec.num_examples,
        "layout": data.spec.layout,
        "fields": {key: type(field).__name__ for key, field in data.spec.fields.items()},
        **in_use,
        **({"init": facts} if facts else {}),
        **({"texts": texts} if texts else {}),
    }
    chip = chip_of(jax.devices())
    return Run(
        path=path,
        config=config,
        record=record,
        merged=merged,
        mesh=mesh,
        parts=parts,
        data=data,
        evaluators=evaluators,
        train_step=train_step,
        shardings=shardings,
        saver=saver,
        recorder=recorder,
        tokenizer=None if tokenize is None else tokenize.tokenizer,
        seconds_at_peak=None if chip is None else parts.model_flops()[0] / (chip.flops * jax.device_count()),
    )


def compile_step(parts: Parts, mesh: jax.sharding.Mesh) -> Step:
    """Return the step, traced; raises UserError if the network cannot take all images that its task makes."""
    try:
        return parts.compile(mesh)
    except flax.errors.ScopeParamShapeError as error:
        raise UserError(
            f"{type(parts.task).__name__} gives the network images of several sizes, and it cannot take them all: make them "
            f"equal, or take a network for any size, such as a ViT. ({str(error).partition(chr(10))[0][:200]})"
        ) from None


def check_memory(shapes: State, shardings: State) -> None:
    """Raise UserError if a device's part of the state does not fit into its memory."""
    needed, there = sharding.bytes_on_device(shapes, shardings), device_memory(jax.local_devices())
    if needed > there:
        raise UserError(
            f"Parameters, optimiser and averages take {needed / 2**30:,.1f} GiB on each device, which has {there / 2**30:,.1f} "
            "GiB: use a smaller model, or shard them over more devices with mesh.fsdp."
        )


def check_first(parts: Parts, initial: Params | None) -> None:
    """Raise UserError if a parameter whose updates are scaled by its norm starts at zero: it would stay near zero."""
    if not parts.norm_scaled:
        return

    def moving(given: Params | None) -> dict[str, jax.Array]:
        params = trees.flatten(parts.init(given).params)
        return {name: leaf.any() for name, leaf in params.items() if name in parts.norm_scaled}

    stuck = [name for name, moves in jax.jit(moving)(initial).items() if not moves]
    if stuck:
        raise UserError(
            f"optim.rule scales the updates of decayed parameters by their norms, but {stuck[0]} begins at zero and would stay "
            "near it. Begin a head otherwise, such as model.head={'type': 'linear', 'std': 0.02}, or leave the parameter out of "
            "optim.decay."
        )


def build_data(config: Mapping[str, Any], source: Source, rows: Sequence[int] | None = None) -> TrainData:
    """Build the training data of a completed config; this process reads only `rows` of each batch, or all rows."""
    options = {key: value for key, value in config["data"].items() if key not in ("resident", "eval_preprocess")}
    for key, kind in (("resident", bool), ("eval_preprocess", str)):
        if not fits(config["data"].get(key), kind | None):
            raise ConfigError(f"data.{key} is {quoted(config['data'][key])}; expected {hint_name(kind)}.")
    return call(
        "data",
        ResidentData if config["data"].get("resident") else TrainData,
        options | {"source": source},
        batch_size=config["batch_size"],
        seed=config["seed"],
        rows=rows,
    )


def load_teacher(reference: str, class_names: tuple[str, ...] | None) -> Teacher:
    """Load the teacher for a task with these classes, or without classes.

    Raises UserError if its head is untrained or has other classes.
    """
    loaded: Loaded = inference.load(reference)
    if class_names is None:
        return Teacher(loaded.task, loaded.weights, loaded.image_shape)
    if loaded.names_known and loaded.class_names != class_names:
        raise UserError(
            f"The teacher {reference} has {len(loaded.class_names)} classes such as {loaded.class_names[:3]}, the training "
            f"data {len(class_names)} such as {class_names[:3]}; they must be the same, in the same order."
        )
    if loaded.has_untrained_head:
        raise UserError(
            f"The head of the teacher {reference} is untrained, so it has nothing to teach; name a trained model."
        )
    return Teacher(loaded.task, loaded.weights, loaded.image_shape)


def build_evaluator(name: str, entry: Mapping[str, Any]) -> tuple[Evaluator, int | None]:
    """Build the evaluator of an entry of `evals`; return it with the steps between two evaluations."""
    every = entry.get("every")
    if not fits(every, Steps | None):
        raise ConfigError(f"evals.{name}.every is {quoted(every)}; expected {hint_name(Steps)}.")
    return factory.build({key: value for key, value in entry.items() if key != "every"}, f"evals.{name}"), every


def check_evaluator(name: str, evaluator: Evaluator, task: Task, weights: Any, train: DataSpec) -> None:
    """Raise UserError if an evaluator's classes differ from the task's, or the task does not give what it measures."""
    found = evaluator.class_names
    if found != task.class_names and task.class_names and not evaluator.own_classes:
        only = [sorted(set(a) - set(b)) for a, b in ((task.class_names, found), (found, task.class_names))]
        raise UserError(
            f"evals.{name}: its classes differ from those of the training data; only in training: {only[0][:5]}, "
            f"only in evaluation: {only[1][:5]}. Both need the same classes in the same order."
        )
    try:
        check_needs(f"evals.{name}", evaluator, task.predict, weights)
    except (flax.errors.ScopeParamShapeError, TypeError) as error:
        here, there = ({k: tuple(x.shape) for k, x in spec.layout.items()} for spec in (evaluator.spec, train))
        if here == there:
            raise
        raise UserError(
            f"evals.{name}.preprocess gives {shown_layout(here)}, data.preprocess {shown_layout(there)}, and the model cannot "
            f"take both; make the sizes equal. ({str(error).partition(chr(10))[0][:200]})"
        ) from None


def shown_layout(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the shapes of an example's arrays in words."""
    return ", ".join(f"{key} of shape {shape}" for key, shape in shapes.items() if shape)


def usage(
    eval_preprocess: str | None,
    evals: Mapping[str, Mapping[str, Any]],
    evaluators: Mapping[str, tuple[Evaluator, int | None]],
    train: DataSpec,
    source: Source,
    recorded: Mapping[str, Any],
) -> dict[str, Any]:
    """Return how images are prepared for the trained model: `preprocess` and the `image_shape` that it gives.

    This is data.eval_preprocess, or the first evaluator's preprocessing, or a resize to the size of the training
    images, or what was recorded when the run began.
    """
    measured = next(((n, e) for n, (e, _) in evaluators.items() if "image" in e.spec.layout), None)
    if eval_preprocess is not None:
        eval_preprocess = without_texts(eval_preprocess)
        return {"preprocess": eval_preprocess, "image_shape": image_shape_of(source, eval_preprocess)}
    if measured is not None:
        name, evaluator = measured
        spec = without_texts(evals[name].get("preprocess", ""))
        return {"preprocess": spec, "image_shape": evaluator.spec.layout["image"].shape}
    if "image" not in train.layout:
        if recorded:
            return {key: recorded[key] for key in ("preprocess", "image_shape")}
        raise UserError(
            f"The training examples have {', '.join(map(repr, train.layout))}, so how images are prepared for the trained model "
            "does not follow from them; give data.eval_preprocess, such as 'resize(224)', or an evaluator."
        )
    height, width, _ = shape = train.layout["image"].shape
    return {"preprocess": f"resize(({height}, {width}))", "image_shape": shape}


def image_shape_of(source: Source, preprocess: str) -> tuple[int, ...]:
    """Return the shape that a preprocess spec gives the first readable image of a source."""
    transforms = parse(preprocess)
    for index in range(len(source)):
        try:
            image = source[index]["image"]
            return transforms.image(np.asarray(decoded(image))).shape
        except UnreadableImage:
            continue
    raise UserError("Found no readable image, so data.eval_preprocess cannot be tried; repair the images.")


def check_best(best: str | None, titles: Sequence[str]) -> None:
    """Raise ConfigError if no evaluator measures the metric that selects the best checkpoint."""
    if best is not None and best.partition("/")[0] not in titles:
        names = ", ".join(f"{name}/accuracy" for name in titles) or "none, as there are no evals"
        raise ConfigError(f"checkpoint.best is {best!r}, which no evaluator measures; expected such as {names}.")


def check_repeats(task: Task, repeats: int) -> None:
    """Raise ConfigError if images would be mixed with copies of themselves."""
    mix = getattr(task, "mix", None)
    if repeats > 1 and mix is not None and mix.partner == "roll":
        raise ConfigError(
            f"data.repeats={repeats} puts the copies of an image side by side, and task.mix.partner='roll' would mix them with "
            "each other; expected task.mix.partner='flip'."
        )


def check_holdouts(train: Mapping[str, Any], evals: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError if an evaluation splits the training folder differently from training."""
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
