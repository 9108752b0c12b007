"""Trained models for use: load a reference, preprocess images, predict."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image

from vit_jax import sharding, stores, trees
from vit_jax.checkpoint import remote, saver, workdir
from vit_jax.checkpoint.transfer.merge import is_untrained_head
from vit_jax.config import factory as configs
from vit_jax.config.kinds import fits, hint_name
from vit_jax.data.decode import decode, from_picture
from vit_jax.data.source import UnreadableImage
from vit_jax.data.transforms.preprocess import parse
from vit_jax.models import fill
from vit_jax.models.sizes import SIZES
from vit_jax.pretrained.pretrained import Pretrained
from vit_jax.pretrained.reference import is_published
from vit_jax.pretrained.reference import read as read_published
from vit_jax.tasks.task import Task
from vit_jax.types import Params, ResizeMethod, UserError

Outputs = dict[str, np.ndarray]
Predict = Callable[[Params, dict[str, np.ndarray]], Outputs]

# What a workdir must say about its model.
CONFIG = {"model": dict, "task": dict, "evals": dict[str, dict], "data": dict}
DATA = {"class_names": list[str], "image_shape": tuple[int, int, int], "preprocess": str}


def make_predict(task: Task, mesh: Mesh) -> Predict:
    """(params, batch) -> outputs of task.predict as numpy arrays, for any number of rows; compiled once per shape.

    What else than images and labels is in the batch comes back with them: of the rows of all processes.
    """

    def outputs(params: Params, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        shown = {key: x for key, x in batch.items() if key in ("image", "label")}
        return {key: x for key, x in batch.items() if key != "image"} | task.predict(params, shown)

    predict = jax.jit(sharding.on_mesh(outputs, mesh), out_shardings=sharding.everywhere(mesh))
    shards = sharding.batch_shards(mesh)

    def padded(params: Params, batch: dict[str, np.ndarray]) -> Outputs:
        if jax.process_count() > 1:  # the rows are divided among them already
            return jax.device_get(predict(params, sharding.put_batch(batch, mesh)))
        rows = len(batch["image"])
        more = -rows % shards
        filled = {key: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) for key, x in batch.items()}
        outputs = jax.device_get(predict(params, sharding.put_batch(filled, mesh)))
        return {key: x[:rows] for key, x in outputs.items()}

    return padded


def output_shapes(task: Task, params: Params, image_shape: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """What task.predict gives for one uint8 image of (h, w, c); the parameters may be shapes too."""
    return jax.eval_shape(task.predict, params, {"image": jax.ShapeDtypeStruct((1, *image_shape), "uint8")})


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its weights, its preprocessing and the names of its classes.

    spec: the spec of the model, its number of classes included. image_shape is (h, w, c) after preprocessing. names_known:
    the names of the classes are its source's, not numbers. posemb: how its position embeddings are resized. config: that of
    the training run, empty for others' weights and random ones. notes: what was assumed where the source does not say.
    """

    spec: dict[str, Any]
    task: Task
    params: Params
    preprocess_spec: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    names_known: bool = True
    posemb: ResizeMethod = "bilinear"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def model(self):
        """The network."""
        return self.task.model

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, in float32 on the host."""
        flat = trees.flatten(jax.device_get(self.params))
        return {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}

    @property
    def has_untrained_head(self) -> bool:
        """Whether there is no head, or one that gives every image the same logits."""
        kernels = {name: leaf for name, leaf in trees.flatten(self.params).items() if name == "head/kernel"}
        return not self.spec["num_classes"] or is_untrained_head(jax.device_get(kernels))

    @property
    def output_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `predict` gives for one image."""
        return output_shapes(self.task, self.params, self.image_shape)

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
        """`logits`, `probs` (of a regression `values`) and `features` of preprocessed images."""
        return self.predict({"image": np.asarray(images)})

    def preprocess(self, image: Any) -> UInt8[np.ndarray, "h w c"]:
        """A path, a PIL image or a uint8 array [h, w] or [h, w, c] as the model takes it; raises UnreadableImage."""
        channels = self.image_shape[2]
        if isinstance(image, str | Path):
            try:
                image = decode(stores.read(str(image)), channels)
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


def load(reference: str | Path, trust: bool = False, changes: Mapping[str, Any] | None = None) -> Loaded:
    """The model that a reference names.

    A workdir or `DIR@step`; a file or folder of the original repository (.npz), big_vision (.npz), timm, transformers or DeiT,
    all of them here or on gs:// and s3://; `hf:OWNER/NAME[@revision]`; a name of the original repository such as "ViT-B_16"; or
    a size such as "S/16" with random weights. Of a workdir the running average of the weights is used where there is one;
    ":raw" at the end asks for the weights themselves. Code from outside vit_jax that a workdir names is imported only with
    trust=True. `changes` are fields of a published model that its files do not state, such as {"mlp": "gelu"} of a .npz.
    """
    place, step, raw = _parse(str(reference))
    with remote.fetched(place, step) as path:
        return _loaded(reference if path == Path(place) else path, path, step, raw, trust, changes)


def _loaded(
    reference: str | Path, path: Path, step: int | None, raw: bool, trust: bool, changes: Mapping[str, Any] | None
) -> Loaded:
    """The model at a path of this machine, or of a name."""
    is_run = path.is_dir() and not is_published(path)
    is_random = not os.path.lexists(path) and str(path).partition("/")[0].rpartition("+")[2] in SIZES
    if changes and (is_run or is_random):
        raise UserError(
            f"{reference} states every field of its model; changes={dict(changes)} are for a published model."
        )
    if is_run:
        return _trained(path, step, raw, trust)
    if is_random:
        return _random(str(path))
    return _published(read_published(str(reference)), changes or {})


def _trained(path: Path, step: int | None, raw: bool, trust: bool) -> Loaded:
    """The model of a workdir."""
    record = workdir.read(path)
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
    spec = fill(config["model"]) | {"num_classes": len(class_names)}
    model = configs.build(spec, "model", trust=trust)
    task = configs.build(config["task"], "task", trust=trust, model=model)
    params = _restore(path, step, raw, task, image_shape)
    # A run that began from others' weights keeps how they are resized.
    began = data.get("init")
    posemb: ResizeMethod = "bicubic" if isinstance(began, dict) and began.get("posemb") == "bicubic" else "bilinear"
    known = bool(data.get("names_known", True))
    return Loaded(spec, task, params, data["preprocess"], image_shape, class_names, known, posemb, config)


def _published(source: Pretrained, changes: Mapping[str, Any]) -> Loaded:
    """A model of others."""
    images, spec = source.preprocessing, {**source.model, **changes}
    model = configs.build(spec, "model")
    task = configs.build({"type": "classify.Classify", "mean": images.mean, "std": images.std}, "task", model=model)
    image_shape = (*images.size, len(images.mean))
    like = jax.eval_shape(lambda: task.init(jax.random.key(0), image_shape))
    different = trees.differences(source.params, trees.flatten(like))
    if different:
        raise UserError(
            f"{source.origin} does not fit the model it describes:"
            + "".join(configs.first([f"\n  {line}" for line in different]))
        )
    everywhere = sharding.everywhere(sharding.make_mesh())
    params = jax.device_put(trees.unflatten(like, source.params), everywhere)
    names = source.class_names or tuple(map(str, range(spec["num_classes"])))
    return Loaded(
        spec, task, params, images.spec, image_shape, names,
        names_known=source.class_names is not None, posemb=source.posemb, notes=source.notes,
    )  # fmt: skip


def _parse(reference: str) -> tuple[str | Path, int | None, bool]:
    match = re.fullmatch(r"(.*?)(?:@(\d{1,18}))?(:raw)?", reference, flags=re.DOTALL)
    assert match is not None
    if not match[1]:
        raise UserError(f"{reference!r} names no model: expected a workdir (DIR or DIR@STEP).")
    whole, raw = reference.removesuffix(":raw"), bool(match[3])
    # A folder may itself be named as DIR@3.
    readings: list[tuple[str, str | None, bool]] = [
        (reference, None, False),
        (whole, None, raw),
        (match[1], match[2], raw),
    ]
    if stores.is_remote(reference):
        place, step, raw = next((r for r in readings if stores.entries(r[0])), readings[-1])
        return place, int(step) if step else None, raw
    path, step, raw = next((r for r in readings if os.path.lexists(os.path.expanduser(r[0]))), readings[-1])
    return Path(os.path.expanduser(path)), int(step) if step else None, raw


def _restore(path: Path, step: int | None, raw: bool, task: Task, image_shape: tuple[int, int, int]) -> Params:
    steps = saver.steps_in(path / "checkpoints")
    if not steps:
        raise UserError(f"{path} has no checkpoint yet; let its training run to the first one.")
    if step is not None and step not in steps:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    step = steps[-1] if step is None else step
    shapes = saver.shapes_of(path / "checkpoints", step)
    part = "ema/" if not raw and any(name.startswith("ema/") for name in shapes) else "params/"
    frozen = {name.removeprefix("frozen/") for name in shapes if name.startswith("frozen/")}
    like = jax.eval_shape(lambda: task.init(jax.random.key(0), image_shape))
    everywhere = sharding.everywhere(sharding.make_mesh())
    leaves = {
        ("frozen/" if k in frozen else part) + k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere)
        for k, v in trees.flatten(like).items()
    }
    flat = saver.restore(path / "checkpoints", step, leaves, ("frozen/", part))
    return trees.unflatten(like, {name.partition("/")[2]: leaf for name, leaf in flat.items()})


def _random(variant: str) -> Loaded:
    """Random weights for 224 px images and 1000 classes; a size without a patch takes 16."""
    name = variant if "/" in variant else f"{variant}/16"
    spec = fill({"type": "vit.ViT", "variant": name, "num_classes": 1000})
    model = configs.build(spec, "model")
    task = configs.build({"type": "classify.Classify"}, "task", model=model)
    image_shape = (224, 224, 3)
    params = jax.jit(lambda: task.init(jax.random.key(0), image_shape))()
    names = tuple(map(str, range(1000)))
    return Loaded(spec, task, params, "resize_small(256)|central_crop(224)", image_shape, names, names_known=False)
