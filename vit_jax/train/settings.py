"""Fill in the parts of a config that follow from its data and from the model in `init`."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_jax import inference
from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.saver import steps_in
from vit_jax.config.factory import ConfigError, call, parameters, resolve, seam_of
from vit_jax.config.hints import fits
from vit_jax.data.source import Source, UnreadableImage, decoded
from vit_jax.data.transforms.preprocess import parse
from vit_jax.inference import Loaded

SIZE = re.compile(r"\bSIZE(?:\*(\d+)//([1-9]\d*))?")


def check_init(
    *,
    ref: str,
    head: Literal["auto", "keep", "reset", "map"] = "auto",
    posemb: Literal["auto", "bilinear", "bicubic", "bicubic_no_antialias", "dinov2"] = "auto",
    patches: Literal["auto", "bilinear", "bicubic"] = "auto",
    allow: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Return the `init` of a config: a model reference, and how to load its parameters into the model of this run."""
    return {"ref": ref, "head": head, "posemb": posemb, "patches": patches, "allow": allow, "trust": trust}


def load_init(init: Mapping[str, Any] | None, path: Path | None) -> tuple[Loaded | None, dict[str, Any] | None]:
    """Return the model that a new run is initialized from, and what its config takes from it; both None without `init`.

    A run that resumes from a checkpoint uses the values recorded when it began, and does not read that model again.
    """
    if init is None:
        return None, None
    asked = call("init", check_init, init)
    if path is not None and steps_in(path / "checkpoints"):
        record = workdirs.read(path)
        if record["config"].get("init") == init and isinstance(record["data"].get("init"), dict):
            return None, record["data"]["init"]
    source = inference.load(asked["ref"], trust=asked["trust"])
    height, width, _ = source.image_shape
    facts = {"model": source.spec, "image_size": [height, width], "posemb": source.posemb}
    facts["patches"] = source.patches
    facts |= {key: getattr(source.task, key) for key in ("mean", "std") if hasattr(source.task, key)}
    return source, facts


def fill_in(config: Mapping[str, Any], facts: Mapping[str, Any] | None, source: Source) -> dict[str, Any]:
    """Return the config with everything that follows from its data and the model in `init`; see the functions below."""
    return fill_texts(fill_sizes(fill_from_model(fill_by_size(config, len(source)), facts, source), facts), source)


def fill_from_model(config: Mapping[str, Any], facts: Mapping[str, Any] | None, source: Source) -> dict[str, Any]:
    """Return the config with the network and normalisation of the model in `init`, if they are unset.

    For images with another number of channels the normalisation is the mean over the model's channels.
    """
    config = dict(config)
    if facts is None:
        return config
    if "type" not in config["model"]:
        # A new head reads the encoder itself (arXiv:2010.11929, section 3.2).
        left = ("num_classes", "rep_size") if config["init"].get("head") == "reset" else ("num_classes",)
        taken = {key: value for key, value in facts["model"].items() if key not in left}
        config["model"] = taken | {key: value for key, value in config["model"].items() if value is not None}
    package = seam_of("task")
    assert package is not None
    takes = parameters(resolve(config["task"].get("type"), package, "task"))
    for key in ("mean", "std"):
        if key in facts and key in takes and config["task"].get(key) is None:
            config["task"] = config["task"] | {key: _for_channels(facts[key], source)}
    return config


def fill_sizes(config: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the config with numbers in place of SIZE in the preprocess specs."""
    size = config["image_size"] or (facts and facts["image_size"])
    if size and not isinstance(size, int):
        size = size[0] if size[0] == size[1] else tuple(size)

    def filled(part: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {**part, **{key: sized(part[key], f"{where}.{key}") for key in part if key.endswith("preprocess")}}

    def sized(spec: Any, where: str) -> Any:
        if not isinstance(spec, str) or not SIZE.search(spec):
            return spec
        if not size:
            raise ConfigError(f"{where} is {spec!r}; give image_size, which SIZE stands for.")

        def number(match: re.Match[str]) -> str:
            if match[1] is None:
                return str(size)
            if not isinstance(size, int):
                raise ConfigError(f"{where} is {spec!r}, but the image size is {size}; give image_size, a number.")
            return str(size * int(match[1]) // int(match[2]))

        return SIZE.sub(number, spec)

    evals = {name: filled(entry, f"evals.{name}") for name, entry in config["evals"].items()}
    return {**config, "data": filled(config["data"], "data"), "evals": evals}


def fill_texts(config: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Return the config with task and text tower fitted to the tokenizer: vocabulary, length, end token, if unset."""
    spec = config["data"].get("preprocess")
    tokenize = parse(spec, source.fields).tokenize if isinstance(spec, str) and "tokenize" in spec else None
    if tokenize is None:
        return dict(config)
    package = seam_of("task")
    assert package is not None
    task = {key: value for key, value in config["task"].items() if value is not None}
    size = {"vocab_size": tokenize.tokenizer.vocab_size}
    if "vocab_size" in parameters(resolve(task.get("type"), package, "task")):
        task = size | task
    if isinstance(task.get("text"), dict):
        after = tokenize.tokenizer.after
        found = {**size, "length": tokenize.length, **({"eos": after[0]} if after else {})}
        task["text"] = found | {key: value for key, value in task["text"].items() if value is not None}
    return {**config, "task": task}


def fill_by_size(config: Mapping[str, Any], num_images: int) -> dict[str, Any]:
    """Return the config with unset keys taken from the row of `by_size` for this many training images."""
    rows = config["by_size"] or []
    for index, row in enumerate(rows):
        if not fits(row.get("below"), int | None):
            raise ConfigError(
                f"by_size[{index}].below is {row['below']!r}; expected a number of images, or None for the rest."
            )
    row = next((row for row in rows if row.get("below") is None or num_images < row["below"]), {})

    def filled(part: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        both = {key: filled(part[key], values[key]) for key in values if isinstance(part.get(key), dict)}
        return {**part, **{key: value for key, value in values.items() if part.get(key) is None}, **both}

    values = {key: value for key, value in row.items() if key != "below"}
    if config["epochs"] is not None:
        values.pop("steps", None)
    return filled(config, values) | {"by_size": None}


def _for_channels(scale: Any, source: Source) -> Any:
    """Return the mean or std of a model, one number or one per channel, for these images."""
    if not isinstance(scale, Sequence) or len(scale) == _channels(source):
        return scale
    return float(np.mean(scale))


def _channels(source: Source) -> int | None:
    """Return the channels of the first image that can be read."""
    for index in range(len(source)):
        with contextlib.suppress(UnreadableImage):
            image = source[index].get("image")
            return None if image is None else decoded(image).shape[2]
    return None
