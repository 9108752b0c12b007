"""Use trained models: load a reference, preprocess images, predict."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax import sharding, stores, trees
from vit_jax.checkpoint import remote, saver, workdir
from vit_jax.checkpoint.transfer.merge import is_untrained_head
from vit_jax.config import factory
from vit_jax.config.hints import fits, hint_name
from vit_jax.data import source, tokenizers
from vit_jax.data.bands import image_file, ranges_in
from vit_jax.data.decode import from_picture
from vit_jax.data.files import read_file
from vit_jax.data.transforms.preprocess import Transforms, parse
from vit_jax.models import fill
from vit_jax.models.sizes import SIZES
from vit_jax.pretrained.pretrained import Preprocessing, Pretrained, from_spec
from vit_jax.pretrained.reference import as_ours, is_published
from vit_jax.pretrained.reference import read as read_published
from vit_jax.tasks.predictor import Outputs, Predictor
from vit_jax.tasks.task import Task, Weights, normalize, with_image_shape
from vit_jax.tasks.towers import Towers
from vit_jax.types import Params, PatchMethod, PosembMethod, UserError

BATCH = 64  # images predicted at once

# Required keys of a workdir's config.json, with their types.
CONFIG = {"model": dict, "task": dict, "evals": dict[str, dict], "data": dict}
DATA = {
    "class_names": list[str],
    "image_shape": tuple[int, int, int],
    "num_examples": int,
    "preprocess": str,
    "layout": dict[str, tuple[list[int], str]],
    "fields": dict[str, Literal[*source.KINDS]],
}


def _is_one(images: Any) -> bool:
    """Return whether this is a single image."""
    return isinstance(images, str | Path | Image.Image) or getattr(images, "ndim", 0) in (2, 3)


def _several(images: Any) -> Sequence[Any]:
    """Return one or several images as a sequence."""
    return [images] if _is_one(images) else images if hasattr(images, "shape") else list(images)


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded:
    """A model with its weights, its preprocessing and the names of its classes.

    spec: the config of the network, including its number of classes. image_shape: (h, w, c) after preprocessing.
    names_known: whether the class names come from the source, and are neither numbers nor assumed to be ImageNet's.
    posemb, patches: how position and patch embeddings are resized. config: the config of the training run, empty for
    published and random weights. task_spec: the config of the task, empty for a classifier with published or random
    weights. tokenizer, text_length: for models that compare images with texts. notes: assumptions about what the source
    does not state.
    """

    spec: dict[str, Any]
    task: Task
    weights: Weights
    preprocess_spec: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    names_known: bool = True
    posemb: PosembMethod = "bilinear"
    patches: PatchMethod = "bilinear"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    task_spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: tokenizers.Tokenizer | None = None
    text_length: int = 0
    notes: tuple[str, ...] = ()

    @property
    def model(self):
        """The image encoder."""
        return self.task.backbone(self.weights)[0]

    @property
    def params(self) -> Params:
        """The parameters of the image encoder."""
        return self.task.backbone(self.weights)[1]["params"]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters of the image encoder by name, in float32 on the host."""
        flat = trees.flatten(jax.device_get(self.params))
        return {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}

    @property
    def has_head(self) -> bool:
        """Whether the network has an output for each class."""
        return bool(self.class_names) and bool(getattr(self.model, "num_classes", 1))

    @property
    def has_untrained_head(self) -> bool:
        """Whether there is no head, or one that gives every image the same logits."""
        kernels = {name: leaf for name, leaf in trees.flatten(self.params).items() if name == "head/kernel"}
        return not self.has_head or is_untrained_head(jax.device_get(kernels))

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and standard deviation of each channel, for normalising images in [0, 1]."""
        mean, std = (np.broadcast_to(getattr(self.task, key, 0.5), self.image_shape[2]) for key in ("mean", "std"))
        return tuple(mean.tolist()), tuple(std.tolist())

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing in the form of other libraries, or None if they cannot express it."""
        return from_spec(self.preprocess_spec, *self.scale)

    @cached_property
    def predictor(self) -> Predictor:
        """The predictor, which runs the model on the devices of this machine."""
        return Predictor(self.task, sharding.make_mesh())

    @cached_property
    def _transforms(self) -> Transforms:
        return parse(self.preprocess_spec)

    def predict(self, batch: dict[str, np.ndarray]) -> Outputs:
        """Return the outputs of Task.predict for uint8 "image" [b, h, w, c], including "loss" if there is a "label"."""
        self.check_images(batch["image"].shape[1:], batch["image"].dtype)
        return self.predictor.outputs(self.weights, batch)

    def check_images(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise UserError if the shape (h, w, c) or dtype of images is not what the model takes."""
        if np.dtype(dtype) != np.uint8:
            raise UserError(f"The model takes uint8 images and normalises them itself; found {dtype}.")
        if shape != self.image_shape:
            raise UserError(
                f"The model takes images of shape {self.image_shape}; found {shape}. Give images of that size and number "
                "of channels, or use loaded.preprocess."
            )

    def __call__(self, images: Any) -> Outputs:
        """Return `logits`, `probs` (`values` for a regression) and `features`, with one row per image.

        images: one or several paths, PIL images or uint8 arrays [h, w] or [h, w, c], or an array [b, h, w, c]. uint8
        arrays of the model's image shape are taken as preprocessed; `preprocess` is applied to all other images. Raises
        source.UnreadableImage.
        """
        if getattr(images, "ndim", 0) == 4 and images.shape[1:] == self.image_shape:
            return self.predict({"image": np.asarray(images)})
        several = _several(images)
        parts = [self.predict({"image": self._batch(several[i : i + BATCH])}) for i in range(0, len(several), BATCH)]
        if not parts:
            raise UserError("There are no images; expected at least one path, PIL image or array.")
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if len(parts) > 1 else parts[0]

    def top(self, images: Any, k: int = 5) -> Any:
        """Return the k most probable classes of an image as [(name, probability), ...], or a list for several."""
        if self.has_untrained_head:
            raise UserError("The model has no head, or an untrained one, so it names no classes; fine-tune it first.")
        outputs = self(images)
        if "probs" not in outputs:
            raise UserError(
                f"The model predicts {', '.join(map(repr, self.class_names))} and no classes; call it instead."
            )
        best = np.argsort(-outputs["probs"], axis=1, kind="stable")[:, : max(1, k)]
        rows = [
            [(self.class_names[i], float(row[i])) for i in order]
            for row, order in zip(outputs["probs"], best, strict=True)
        ]
        return rows[0] if _is_one(images) else rows

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        names = ", ".join(self.class_names[:3]) + (", ..." if len(self.class_names) > 3 else "")
        return (
            f"Loaded {self.spec.get('type', type(self.model).__name__)}: {size:,} parameters, images "
            f"{' x '.join(map(str, self.image_shape))}\n  preprocess: {self.preprocess_spec or 'none'}\n"
            f"  classes: {len(self.class_names):,}" + (f" ({names})" if names else "")
        )

    def _batch(self, images: Sequence[Any]) -> UInt8[np.ndarray, "b h w c"]:
        return np.stack([self._ready(image) for image in images])

    def _ready(self, image: Any) -> np.ndarray:
        """Return an image preprocessed for the model."""
        if getattr(image, "shape", None) == self.image_shape:
            self.check_images(self.image_shape, image.dtype)
            return np.asarray(image)
        try:
            return self.preprocess(image)
        except source.UnreadableImage as error:
            raise source.UnreadableImage(
                f"{image}: {error}" if isinstance(image, str | Path) else str(error)
            ) from error

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the `text_embedding` [n, d] of texts, in the space of the `image_embedding` from __call__."""
        ids = self.tokens(texts)
        rows = [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
        filled = [np.pad(row, [(0, min(BATCH, len(ids)) - len(row)), (0, 0)]) for row in rows]  # compiled once
        found = [self.predictor.outputs(self.weights, {"text": row})["text_embedding"] for row in filled]
        return np.concatenate(found)[: len(ids)]

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Return the token ids of texts, int32 [n, text_length]; raises UserError if the model takes no texts."""
        if self.tokenizer is None:
            raise UserError(
                "The model has no tokenizer, so it compares no texts; take a run of configs/siglip.py, CLIP or SigLIP."
            )
        try:
            return np.stack([self.tokenizer(text, self.text_length)[0] for text in tokenizers.checked(list(texts))])
        except ValueError as error:
            raise UserError(f"A text cannot be compared: {error}.") from None

    def match(self, image_embedding: np.ndarray, text_embedding: np.ndarray) -> np.ndarray:
        """Return the probability [b, n] of each text for each image, as defined by the training objective."""
        if not isinstance(self.task, Towers):
            raise UserError("The model compares no texts.")
        found = self.task.match(self.weights["params"], jnp.asarray(image_embedding), jnp.asarray(text_embedding))
        return np.asarray(found)

    def features(
        self, images: UInt8[np.ndarray, "b h w c"], layers: Sequence[int] = (-1,), norm: bool = False
    ) -> list[Outputs]:
        """Return the features of preprocessed images after the given blocks.

        Blocks are numbered from 0, or from the last one with negative numbers. Each gives `patches` [b, rows, columns,
        d] and, if the network has them, `class_token` and `distillation_token` [b, d] and `registers` [b, r, d]. norm:
        also apply the last LayerNorm, unless the network applies it only to the pooled vector. Raises UserError for
        blocks that the network does not have.
        """
        self.check_images(images.shape[1:], images.dtype)
        stages = jax.device_get(self._stages(self.task.backbone(self.weights)[1], np.asarray(images), norm))
        if not all(-len(stages) <= i < len(stages) for i in layers):
            raise UserError(
                f"layers={list(layers)}; the network has {len(stages)}: numbers from {-len(stages)} to {len(stages) - 1}."
            )
        return [self._parts(stages[i]) for i in layers]

    @cached_property
    def _stages(self) -> Callable[..., list[jax.Array]]:
        """The function from images to the tokens or feature maps after each block."""
        model, scale = self.model, (getattr(self.task, "mean", 0.5), getattr(self.task, "std", 0.5))

        def stages(variables: Weights, images: jax.Array, norm: bool) -> list[jax.Array]:
            options = {"norm_stages": True} if norm else {}
            return model.apply(variables, normalize(images, *scale), method="features", **options)["stages"]

        if not hasattr(model, "features"):
            raise UserError(
                f"A {type(model).__name__} has no method `features`, which gives the tokens after each block."
            )
        return jax.jit(stages, static_argnums=2)

    def _parts(self, stage: np.ndarray) -> Outputs:
        """Split the tokens of a block by kind."""
        if stage.ndim == 4:  # a feature map
            return {"patches": stage}
        parts, start = {}, 0
        for name, count in getattr(self.model, "prefix_sizes", {}).items():
            tokens = stage[:, start : start + count]
            if count:
                parts[name] = tokens if name == "registers" else tokens[:, 0]
            start += count
        rows, columns = self.model.grid(self.image_shape[:2])
        return parts | {"patches": stage[:, start:].reshape(len(stage), rows, columns, -1)}

    def decoded(self, image: Any) -> UInt8[np.ndarray, "h w c"]:
        """Decode a path, PIL image or uint8 [h, w] or [h, w, c] to the model's channels; raises UnreadableImage."""
        channels = self.image_shape[2]
        if isinstance(image, str | Path):
            data = read_file(os.path.expanduser(image))
            image = image_file(lambda: data, channels, ranges_in(self.config)).decode()
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
        return image

    def example(self, image: Any) -> source.Example:
        """Return the preprocessed image under "image", and what its preprocessing adds, such as `image_size`."""
        return self._transforms({"image": self.decoded(image)}, np.random.default_rng(0))

    def preprocess(self, image: Any) -> UInt8[np.ndarray, "h w c"]:
        """Preprocess a path, PIL image or uint8 array [h, w] or [h, w, c] for the model; raises UnreadableImage."""
        result = self._transforms.image(self.decoded(image))
        if result.shape != self.image_shape:
            raise UserError(
                f"The model takes images of shape {self.image_shape}; found {result.shape} after its preprocessing "
                f"{self.preprocess_spec!r}. Resize the image to that."
            )
        return result


def load(reference: str | Path, trust: bool = False, changes: Mapping[str, Any] | None = None) -> Loaded:
    """Load the model that a reference names.

    A reference is a workdir or `DIR@step`; a file or folder of the original repository (.npz), big_vision (.npz), timm,
    transformers or DeiT, local or on gs:// and s3://; `hf:OWNER/NAME[@revision]`; a name of the original repository
    such as "ViT-B_16"; or a size such as "S/16", for random weights. A workdir gives the weights that its task
    evaluates, or their running average if there is one; a suffix such as ":raw" or ":student" selects other weights.
    Code from outside vit_jax that a workdir names is imported only with trust=True. changes: fields of a published
    model that its files do not state, such as {"mlp": "gelu"} for a .npz.
    """
    if not stores.is_remote(reference) and stores.is_too_long(str(reference)):
        raise UserError(f"{factory.quoted(str(reference), 60)} is not a model: no path or name is that long.")
    reference = as_ours(str(reference))
    place, step, suffix = parse_reference(reference)
    with remote.fetched(place, step) as path:
        return _loaded(reference if path == Path(place) else path, path, step, suffix, trust, changes)


def _loaded(
    reference: str | Path, path: Path, step: int | None, suffix: str, trust: bool, changes: Mapping[str, Any] | None
) -> Loaded:
    """Load the model of a local path or a name."""
    is_run = path.is_dir() and not is_published(path)
    is_random = not os.path.lexists(path) and str(path).partition("/")[0].rpartition("+")[2] in SIZES
    if changes and (is_run or is_random):
        raise UserError(
            f"{reference} states every field of its model; changes={dict(changes)} are only for published models."
        )
    if is_run:
        return _trained(path, step, suffix, trust)
    if is_random:
        return _random(str(path))
    return _published(read_published(str(reference)), changes or {})


def _trained(path: Path, step: int | None, suffix: str, trust: bool) -> Loaded:
    """Load the model of a workdir."""
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
    network = {key: value for key, value in fill(config["model"]).items() if key != "num_classes"}
    layout = {key: jax.ShapeDtypeStruct(tuple(shape), dtype) for key, (shape, dtype) in data["layout"].items()}
    shapes = with_image_shape(layout, image_shape[2])
    steps = factory.steps_of(config, data["num_examples"]) if config.get("steps") or config.get("epochs") else None
    kinds = {key: source.KINDS[kind] for key, kind in data["fields"].items()}
    fields = {key: kind(class_names) if issubclass(kind, source.Named) else kind() for key, kind in kinds.items()}
    task = factory.build_task(
        config["task"], network, class_names=class_names, spec=shapes, fields=fields, steps=steps, trust=trust
    )
    weights = _restore(path, step, suffix, task, shapes)
    # A run initialized from published weights keeps their resize methods.
    began = data.get("init") if isinstance(data.get("init"), dict) else {}
    posemb: PosembMethod = next(
        (method for method in get_args(PosembMethod) if method == began.get("posemb")), "bilinear"
    )
    patches: PatchMethod = next(
        (method for method in get_args(PatchMethod) if method == began.get("patches")), "bilinear"
    )
    known = bool(data.get("names_known", True))
    texts = data.get("texts") or {}
    if not fits(texts, dict) or not fits(length := texts.get("length", 0), int):
        raise UserError(f"{path}/config.json has {texts!r} as data.texts; expected the length of its texts in tokens.")
    tokenizer = tokenizers.read(str(path / tokenizers.FILE)) if texts else None
    spec = network | {"num_classes": len(task.class_names)}
    return Loaded(
        spec, task, weights, data["preprocess"], image_shape, class_names, known, posemb, patches, config, config["task"],
        tokenizer, length,
    )  # fmt: skip


def _published(source: Pretrained, changes: Mapping[str, Any]) -> Loaded:
    """Return a published model."""
    from vit_jax.pretrained import imagenet

    images, network = source.preprocessing, {**source.model, **changes}
    image_shape = (*images.size, len(images.mean))
    assumed = None if source.class_names else imagenet.class_names(network["num_classes"])
    names = source.class_names or assumed or tuple(map(str, range(network["num_classes"])))
    spec = {"type": "classify.Classify", **(source.task or {}), "mean": images.mean, "std": images.std}
    task, like = _task_of(spec, network, image_shape, names)
    different = trees.differences(source.params, {k.removeprefix("params/"): x for k, x in trees.flatten(like).items()})
    if different:
        raise UserError(
            f"{source.origin} does not fit the model it describes:"
            + "".join(factory.first([f"\n  {line}" for line in different]))
        )
    everywhere = sharding.everywhere(sharding.make_mesh())
    flat = {name: source.params[name.removeprefix("params/")] for name in trees.flatten(like)}
    weights = jax.device_put(trees.unflatten(like, flat), everywhere)
    notes = [f"Its {len(names)} classes are shown by ImageNet's names, in the order of WordNet ids."] if assumed else []
    return Loaded(
        network, task, weights, images.spec, image_shape, names,
        names_known=source.class_names is not None, posemb=source.posemb, patches=source.patches,
        task_spec={} if source.task is None else spec, tokenizer=tokenizers.find(source.folder) if "text" in spec else None,
        text_length=spec["text"]["length"] if "text" in spec else 0, notes=(*source.notes, *notes),
    )  # fmt: skip


def _task_of(
    spec: Mapping[str, Any], network: Mapping[str, Any], image_shape: tuple[int, int, int], names: tuple[str, ...]
) -> tuple[Task, Weights]:
    """Return a task on images with texts, or with labels of these classes, and the shapes of its weights."""
    shapes = {"image": jax.ShapeDtypeStruct(image_shape, "uint8")}
    kinds: dict[str, source.Field] | None = None
    if "text" in spec:
        shapes["text"] = jax.ShapeDtypeStruct((spec["text"]["length"],), "int32")
    elif spec["type"] != "classify.Classify":
        kinds = {"segments": source.Segments(names), "boxes": source.Boxes(), "box_labels": source.BoxLabels(names)}
    module = {key: value for key, value in network.items() if key != "num_classes"}
    task = factory.build_task(spec, module, class_names=names, spec=shapes, fields=kinds)
    params = jax.eval_shape(lambda: task.init(jax.random.key(0), shapes))
    return task, jax.eval_shape(task.evaluated, params, jax.eval_shape(task.init_state, params))[""]


def parse_reference(reference: str) -> tuple[str | Path, int | None, str]:
    """Return the path or name of a reference, its step, and its suffix: "DIR@3:raw" is (DIR, 3, "raw")."""
    match = re.fullmatch(r"(.*?)(?:@(\d{1,18}))?(?::([a-zA-Z_]\w*))?", reference, flags=re.DOTALL)
    assert match is not None
    if not match[1]:
        raise UserError(f"{reference!r} is not a model: expected a workdir (DIR or DIR@STEP).")
    whole, suffix = reference.removesuffix(f":{match[3]}"), match[3] or ""
    # A folder may itself be named DIR@3.
    readings: list[tuple[str, str | None, str]] = [
        (reference, None, ""),
        (whole, None, suffix),
        (match[1], match[2], suffix),
    ]
    if stores.is_remote(reference):
        place, step, suffix = next((r for r in readings if stores.entries(r[0])), readings[-1])
        return place, int(step) if step else None, suffix
    found = next((r for r in readings if os.path.lexists(os.path.expanduser(r[0]))), None)
    if found is None:  # a name of the hub or of a size may have a colon, as hf:NAME
        found = (match[1], match[2], suffix) if suffix == "raw" or match[2] else (reference, None, "")
    path, step, suffix = found
    return Path(os.path.expanduser(path)), int(step) if step else None, suffix


def _restore(path: Path, step: int | None, suffix: str, task: Task, spec: Mapping[str, Any]) -> Weights:
    """Load the weights that a checkpoint evaluates under a suffix."""
    steps = saver.steps_in(path / "checkpoints")
    if not steps:
        raise UserError(f"{path} has no checkpoint yet; let its training run to the first one.")
    if step is not None and step not in steps:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    step = steps[-1] if step is None else step
    shapes = saver.shapes_of(path / "checkpoints", step)
    averaged = any(name.startswith("ema/") for name in shapes)
    raw = suffix == "raw" or suffix.endswith("_raw") or not averaged
    suffix = re.sub(r"(^|_)raw$", "", suffix)
    part = "params/" if raw else "ema/"
    frozen = {name.removeprefix("frozen/") for name in shapes if name.startswith("frozen/")}
    like = jax.eval_shape(lambda: task.init(jax.random.key(0), spec))
    like_state = jax.eval_shape(task.init_state, like)
    known = jax.eval_shape(task.evaluated, like, like_state)
    if suffix not in known:
        named = ", ".join(repr(name) for name in known if name) or "none with a name"
        raise UserError(
            f"{path} has no weights named {suffix!r}; it has {named}{', and each with raw' if averaged else ''}."
        )
    everywhere = sharding.everywhere(sharding.make_mesh())
    names = {k: ("frozen/" if k in frozen else part) + k for k in trees.flatten(like)}
    leaves = {names[k]: v for k, v in trees.flatten(like).items()}
    leaves |= {f"state/{k}": v for k, v in trees.flatten(like_state).items()}
    wanted = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere) for k, v in leaves.items()}
    flat = saver.restore(path / "checkpoints", step, wanted, ("frozen/", "state/", part))
    params = trees.unflatten(like, {k: flat[name] for k, name in names.items()})
    state = trees.unflatten(like_state, {k: flat[f"state/{k}"] for k in trees.flatten(like_state)})
    return task.evaluated(params, state)[suffix]


def _random(variant: str) -> Loaded:
    """Return a network with random weights for 224 px images and 1000 classes; a size without a patch takes 16."""
    name = variant if "/" in variant else f"{variant}/16"
    network = fill({"type": "vit.ViT", "variant": name, "num_classes": 1000})
    names, image_shape = tuple(map(str, range(1000))), (224, 224, 3)
    task, _ = _task_of({"type": "classify.Classify"}, network, image_shape, names)
    shapes = {"image": jax.ShapeDtypeStruct(image_shape, "uint8")}
    params = jax.jit(lambda: task.init(jax.random.key(0), shapes))()
    spec = "resize_small(256)|central_crop(224)"
    return Loaded(network, task, {"params": params}, spec, image_shape, names, names_known=False)
