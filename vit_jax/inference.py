"""Trained models for use: load a reference, preprocess images, predict."""

import dataclasses
import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image

from vit_jax import config as configs
from vit_jax import sharding, trees
from vit_jax.checkpoint import saver, workdir
from vit_jax.data.decode import decode, from_picture
from vit_jax.data.preprocess import parse
from vit_jax.data.source import UnreadableImage
from vit_jax.kinds import fits, hint_name
from vit_jax.models.sizes import SIZES
from vit_jax.tasks.task import Task
from vit_jax.types import Params, UserError

Outputs = dict[str, np.ndarray]
Predict = Callable[[Params, dict[str, np.ndarray]], Outputs]

# What a workdir must say about its model.
CONFIG = {"model": dict, "task": dict, "evals": dict[str, dict], "data": dict}
DATA = {"class_names": list[str], "image_shape": tuple[int, int, int], "preprocess": str}


def make_predict(task: Task, mesh: Mesh) -> Predict:
    """(params, batch) -> outputs of task.predict as numpy arrays, for any number of rows; compiled once per shape."""
    predict = jax.jit(task.predict, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    shards = sharding.batch_shards(mesh)

    def padded(params: Params, batch: dict[str, np.ndarray]) -> Outputs:
        rows = len(batch["image"])
        more = -rows % shards
        filled = {key: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) for key, x in batch.items()}
        outputs = jax.device_get(predict(params, sharding.put_batch(filled, mesh)))
        return {key: x[:rows] for key, x in outputs.items()}

    return padded


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its weights, its preprocessing and the names of its classes.

    image_shape is (h, w, c) after preprocessing; `config` is that of the training run, empty for random weights.
    """

    task: Task
    params: Params
    preprocess_spec: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def model(self):
        """The network."""
        return self.task.model

    @cached_property
    def _predict(self) -> Predict:
        return make_predict(self.task, sharding.make_mesh())

    @cached_property
    def _operation(self) -> Callable[..., np.ndarray]:
        return parse(self.preprocess_spec)

    def predict(self, batch: dict[str, np.ndarray]) -> Outputs:
        """The outputs of Task.predict for uint8 images [b, h, w, c] under "image", with "loss" where there is a "label"."""
        shape, dtype = batch["image"].shape[1:], batch["image"].dtype
        if dtype != np.uint8:
            raise UserError(f"The model takes uint8 images and normalises them itself; found {dtype}.")
        if shape != self.image_shape:
            raise UserError(
                f"The model takes images of shape {self.image_shape}; found {shape}. Give images of that size and number "
                "of channels, or use loaded.preprocess."
            )
        return self._predict(self.params, batch)

    def __call__(self, images: UInt8[np.ndarray, "b h w c"]) -> Outputs:
        """`logits`, `probs` and `features` of preprocessed images."""
        return self.predict({"image": np.asarray(images)})

    def preprocess(self, image: Any) -> UInt8[np.ndarray, "h w c"]:
        """A path, a PIL image or a uint8 array [h, w] or [h, w, c] as the model takes it; raises UnreadableImage."""
        channels = self.image_shape[2]
        if isinstance(image, str | Path):
            try:
                image = decode(Path(image).read_bytes(), channels)
            except OSError as error:
                raise UnreadableImage(error.strerror or str(error)) from error
        elif isinstance(image, Image.Image):
            image = from_picture(image, channels)
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise UserError(f"An image is uint8 [h, w] or [h, w, c]; found {image.dtype} of shape {image.shape}.")
        image = image.reshape(*image.shape[:2], -1)
        if image.shape[2] != channels:
            if image.shape[2] != 1:
                raise UserError(f"The model takes {channels} channels; found an image of shape {image.shape}.")
            image = image.repeat(channels, axis=2)
        result = self._operation(image, np.random.default_rng(0))
        if result.shape != self.image_shape:
            raise UserError(
                f"The model takes images of shape {self.image_shape}; found {result.shape} after its preprocessing "
                f"{self.preprocess_spec!r}. Resize the image to that."
            )
        return result


def load(reference: str | Path, trust: bool = False) -> Loaded:
    """The model that a reference names: a workdir, `DIR@step`, or a size such as "S/16" with random weights.

    The running average of the weights is used where there is one; ":raw" at the end asks for the weights themselves. Code
    from outside vit_jax that a workdir names is imported only with trust=True.
    """
    path, step, raw = _parse(str(reference))
    if not os.path.exists(path) and str(path).partition("/")[0] in SIZES:
        return _random(str(path))
    record = _read(path)
    config, data = record["config"], record["data"]
    for part, hints in (("config", CONFIG), ("data", DATA)):
        for key, hint in hints.items():
            if not fits(record[part].get(key), hint):
                raise UserError(
                    f"{path}/config.json has {record[part].get(key)!r} as {part}.{key}; expected {hint_name(hint)}."
                )
    class_names, image_shape = tuple(data["class_names"]), tuple(data["image_shape"])
    if min(image_shape) < 1:
        raise UserError(f"{path}/config.json has {image_shape} as data.image_shape; expected sizes of at least 1.")
    parse(data["preprocess"])
    model = configs.build(config["model"], "model", trust=trust, num_classes=len(class_names))
    task = configs.build(config["task"], "task", trust=trust, model=model)
    params = _restore(path, step, raw, task, image_shape)
    return Loaded(task, params, data["preprocess"], image_shape, class_names, config)


def load_params(ref: str, task: Task, image_shape: tuple[int, int, int]) -> Params:
    """The parameters alone of a workdir `DIR[@step][:raw]` for a task; raises UserError where the model is another."""
    path, step, raw = _parse(ref)
    _read(path)
    return _restore(path, step, raw, task, image_shape)


def _parse(reference: str) -> tuple[Path, int | None, bool]:
    match = re.fullmatch(r"(.*?)(?:@(\d{1,18}))?(:raw)?", reference, flags=re.DOTALL)
    assert match is not None
    if not match[1]:
        raise UserError(f"{reference!r} names no model: expected a workdir (DIR or DIR@STEP).")
    return Path(match[1]).expanduser(), int(match[2]) if match[2] else None, bool(match[3])


def _read(path: Path) -> dict[str, Any]:
    """The record of a workdir."""
    if not os.path.exists(path):
        raise UserError(
            f"No model at {str(path)!r}: expected a workdir (DIR or DIR@STEP), or a size with random weights such as S/16."
        )
    if not path.is_dir():
        raise UserError(f"{str(path)!r} is a file; expected the workdir of a training run.")
    return workdir.read(path)


def _restore(path: Path, step: int | None, raw: bool, task: Task, image_shape: tuple[int, int, int]) -> Params:
    steps = saver.steps_in(path / "checkpoints")
    if not steps:
        raise UserError(f"{path} has no checkpoint yet; let its training run to the first one.")
    if step is not None and step not in steps:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    step = steps[-1] if step is None else step
    shapes = saver.shapes_of(path / "checkpoints", step)
    part = "ema/" if not raw and any(name.startswith("ema/") for name in shapes) else "params/"
    like = jax.eval_shape(lambda: task.init(jax.random.key(0), image_shape))
    everywhere = jax.sharding.NamedSharding(sharding.make_mesh(), jax.sharding.PartitionSpec())
    leaves = {
        part + k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere) for k, v in trees.flatten(like).items()
    }
    flat = saver.restore(path / "checkpoints", step, leaves, part)
    return trees.unflatten(like, {name.removeprefix(part): leaf for name, leaf in flat.items()})


def _random(variant: str) -> Loaded:
    """Random weights for 224 px images and 1000 classes; a size without a patch takes 16."""
    name = variant if "/" in variant else f"{variant}/16"
    model = configs.build({"type": "vit.ViT", "variant": name, "num_classes": 1000}, "model")
    task = configs.build({"type": "classify.Classify"}, "task", model=model)
    image_shape = (224, 224, 3)
    params = jax.jit(lambda: task.init(jax.random.key(0), image_shape))()
    return Loaded(task, params, "resize_small(256)|central_crop(224)", image_shape, tuple(map(str, range(1000))))
