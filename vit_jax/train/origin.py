"""Runs that begin from a model: what their config takes from it, and their first parameters."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn

from vit_jax import inference, trees
from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.saver import steps_in
from vit_jax.checkpoint.transfer.merge import Merged, merge, report_lines, report_text
from vit_jax.config.factory import ConfigError, call, parameters, resolve, seam_of
from vit_jax.data.pipeline import Spec
from vit_jax.data.source import Source, UnreadableImage
from vit_jax.inference import Loaded
from vit_jax.tasks.task import Task

SIZE = re.compile(r"\bSIZE(?:\*(\d+)//([1-9]\d*))?")


def check_init(
    *,
    ref: str,
    head: Literal["auto", "keep", "reset", "map"] = "auto",
    posemb: Literal["auto", "bilinear", "bicubic"] = "auto",
    allow: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """The `init` of a config: a model reference, and how its parameters are put into the model of this run."""
    return {"ref": ref, "head": head, "posemb": posemb, "allow": allow, "trust": trust}


def load(init: Mapping[str, Any] | None, path: Path | None) -> tuple[Loaded | None, dict[str, Any] | None]:
    """The model that a new run begins from, and what its config takes from it.

    A run that resumes from a checkpoint takes the same as when it began, and needs no more of that model. Both are None
    without `init`.
    """
    if init is None:
        return None, None
    asked = call("init", check_init, init)
    if path is not None and steps_in(path / "checkpoints"):
        record = workdirs.read(path)
        if record["config"].get("init") == init and isinstance(record["data"].get("init"), dict):
            return None, record["data"]["init"]
    source = inference.load(asked["ref"], trust=asked["trust"])
    task, (height, width, _) = source.task, source.image_shape
    facts = {"model": source.spec, "image_size": [height, width], "posemb": source.posemb}
    facts |= {key: getattr(task, key) for key in ("mean", "std") if hasattr(task, key)}
    return source, facts


def fill_in(config: dict[str, Any], facts: Mapping[str, Any] | None, images: Source) -> dict[str, Any]:
    """The config with what it leaves to the model that the run begins from: model, normalisation and SIZE.

    For images of another number of channels the normalisation is the mean of the model's channels.
    """
    config = dict(config)
    if facts is not None:
        if "type" not in config["model"]:
            # A new head stands on the encoder itself (arXiv:2010.11929, section 3.2).
            left = ("num_classes", "rep_size") if config["init"].get("head") == "reset" else ("num_classes",)
            taken = {key: value for key, value in facts["model"].items() if key not in left}
            config["model"] = taken | {key: value for key, value in config["model"].items() if value is not None}
        package = seam_of("task")
        assert package is not None
        takes = parameters(resolve(config["task"].get("type"), package, "task"))
        for key in ("mean", "std"):
            if key in facts and key in takes and config["task"].get(key) is None:
                config["task"] = config["task"] | {key: _for_channels(facts[key], images)}
    size = config["image_size"] or (facts and facts["image_size"])
    if size and not isinstance(size, int):
        size = size[0] if size[0] == size[1] else tuple(size)

    def sized(part: Mapping[str, Any], where: str) -> dict[str, Any]:
        spec = part.get("preprocess")
        if not isinstance(spec, str) or not SIZE.search(spec):
            return dict(part)
        if not size:
            raise ConfigError(f"{where}.preprocess is {spec!r}; give image_size, which SIZE stands for.")

        def number(match: re.Match[str]) -> str:
            if match[1] is None:
                return str(size)
            if not isinstance(size, int):
                raise ConfigError(
                    f"{where}.preprocess is {spec!r}, but the image size is {size}; give image_size, a number."
                )
            return str(size * int(match[1]) // int(match[2]))

        return {**part, "preprocess": SIZE.sub(number, spec)}

    config["data"] = sized(config["data"], "data")
    config["evals"] = {name: sized(entry, f"evals.{name}") for name, entry in config["evals"].items()}
    return config


def _for_channels(scale: Any, images: Source) -> Any:
    """The mean or std of a model, one number or one per channel, for these images."""
    if not isinstance(scale, Sequence) or len(scale) == _channels(images):
        return scale
    return float(np.mean(scale))


def _channels(images: Source) -> int | None:
    """The channels of the first image that can be read."""
    for index in range(len(images)):
        with contextlib.suppress(UnreadableImage):
            return images.image(index).shape[2]
    return None


def grid_of(task: Task, image_shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """Rows and columns of the patches of an image; None for a model that does not say."""
    grid = getattr(task.model, "grid", None)
    return grid(image_shape[:2]) if grid else None


def stated(module: nn.Module) -> dict[str, Any]:
    """Every field of a model with its value, defaults included, as in a spec."""
    values = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    own = {key: value for key, value in values.items() if key not in ("parent", "name")}
    return {key: stated(value) if isinstance(value, nn.Module) else value for key, value in own.items()}


def begin(source: Loaded, init: Mapping[str, Any], task: Task, spec: Spec, seed: int) -> Merged:
    """The first parameters of a run on data of this spec; raises UserError that lists what does not match."""
    asked = call("init", check_init, init)

    def initial() -> dict[str, Any]:
        return trees.flatten(task.init(jax.random.key(seed), spec.image_shape))

    @functools.cache
    def compiled() -> dict[str, np.ndarray]:
        return jax.device_get(jax.jit(initial)())

    merged = merge(
        source=source.arrays,
        source_model=stated(source.model),
        source_classes=source.class_names if source.names_known else None,
        source_grid=grid_of(source.task, source.image_shape),
        model=stated(task.model),
        like=jax.eval_shape(initial),
        fresh=lambda name: compiled()[name],
        classes=spec.class_names,
        grid=grid_of(task, spec.image_shape),
        head=asked["head"],
        posemb=source.posemb if asked["posemb"] == "auto" else asked["posemb"],
        allow=asked["allow"] or "",
    )
    return dataclasses.replace(merged, notes=(*merged.notes, *source.notes))


def tell(first: Merged, ref: str, path: Path) -> None:
    """Prints what became of the model's parameters, and writes it in full as init.txt into the workdir."""
    workdirs.write_text(path / "init.txt", report_text(first.report))
    notes = (f"note: {note}" for note in first.notes)
    print(f"begins from {ref}:", *report_lines(first.report), *notes, sep="\n", flush=True)
