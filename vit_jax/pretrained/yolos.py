"""Convert transformers' YolosForObjectDetection: read, write and name its arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.pretrained import huggingface, processor, specs
from vit_jax.pretrained.links import Link, dense, shape_of, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import PREPROCESSOR, check_new, config_value, write_folder
from vit_jax.types import UserError

_MID = "encoder.mid_position_embeddings"
# Settings of the loss, by our names; transformers' defaults equal ours.
_WEIGHTS = {
    "class_cost": "class_cost", "box_cost": "bbox_cost", "giou_cost": "giou_cost", "box_weight": "bbox_loss_coefficient",
    "giou_weight": "giou_loss_coefficient", "no_object": "eos_coefficient",
}  # fmt: skip


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the config describes a YOLOS."""
    return config.get("model_type") == "yolos"


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a state dict of YolosForObjectDetection, with its config.json.

    The positions of the detection tokens are added to the tokens. Images are resized to the size of the position
    embeddings, while transformers keeps their aspect ratio and interpolates the embeddings.
    """
    inner = {name.removeprefix("vit."): x for name, x in arrays.items() if name.startswith("vit.")}
    inner = {name.replace("encoder.interpolation.", "encoder."): x for name, x in inner.items()}  # in memory
    heads = {name: x for name, x in arrays.items() if not name.startswith("vit.")}
    tokens = _popped(inner, "embeddings.detection_tokens", origin)
    q = tokens.shape[1] if tokens.ndim == 3 else 0
    size = specs.pair(config_value(config, "image_size", int | tuple[int, int], (512, 864), origin))
    patch = config_value(config, "patch_size", int, 16, origin)
    table = _popped(inner, "embeddings.position_embeddings", origin)
    n = (size[0] // patch) * (size[1] // patch)
    if table.ndim != 3 or table.shape[1] != n + 1 + q or not q:
        raise UserError(
            f"{origin} has position embeddings of shape {table.shape}; expected {n} patches, a class token "
            f"and {q} detection tokens."
        )
    inner["embeddings.position_embeddings"] = table[:, : n + 1]
    between = inner.pop(_MID, None)
    size = (size[0] // patch * patch, size[1] // patch * patch)
    base = {**config, "model_type": "vit", "image_size": list(size), "architectures": None, "preprocessor": {}}
    found = huggingface.read(inner, base, origin)
    last = "class_labels_classifier.layers.2.bias"
    classes = shape_of(heads, last, 1, origin)[0] - 1
    params = {f"backbone/{name}": x for name, x in found.params.items()} | to_ours(_heads(), heads, origin)
    params["tokens"] = tokens + table[:, n + 1 :]
    if between is not None:
        expected = (found.model["depth"] - 1, 1, n + 1 + q, tokens.shape[2])
        if between.shape != expected:
            raise UserError(f"{origin} has {_MID} of shape {between.shape}; expected {expected}.")
        params["between"] = between[:, 0]
    names = specs.label_names(config, classes)
    if len(set(names)) < classes:  # COCO's unused category numbers are all called N/A
        names = tuple(f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names))
    given = {
        ours: config_value(config, theirs, float, None, origin) for ours, theirs in _WEIGHTS.items() if theirs in config
    }
    task = {"type": "detect.Detect", "detection_tokens": q, "between": between is not None, **given}
    stated = config_value(config, "preprocessor", dict, {}, origin)
    # The encoder alone would be a ViT, whose pixels have another mean.
    notes = [note for note in found.notes if stated or PREPROCESSOR not in note]
    if not stated:
        notes.append(
            f"It has no {PREPROCESSOR}: assumed a resize to {size}, and ImageNet's mean and standard deviation."
        )
    mean, std = (
        tuple(stated.get(key) or fallback)
        for key, fallback in (("image_mean", processor.MEAN), ("image_std", processor.STD))
    )
    images = Preprocessing(size, size, "bilinear", mean, std)
    return Pretrained(found.model, params, images, names, origin, "bicubic_no_antialias", notes=tuple(notes), task=task)


def _popped(arrays: FlatParams, name: str, origin: str) -> np.ndarray:
    shape_of(arrays, name, 3, origin)
    return arrays.pop(name)


def _heads() -> list[Link]:
    names = {"class_labels_classifier": "class_head", "bbox_predictor": "box_head"}
    layers = ("dense_0", "dense_1", "out")
    return [
        link for theirs, ours in names.items() for i, layer in enumerate(layers)
        for link in dense(f"{theirs}.layers.{i}", f"{ours}/{layer}")
    ]  # fmt: skip


def write(
    folder: Path,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    params: FlatParams,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...],
) -> list[str]:
    """Write a folder that transformers' YolosForObjectDetection loads; return notes.

    Raises UserError naming the unsupported field of a network.
    """
    check_new(folder)
    if preprocessing is None:
        raise UserError("transformers needs the size of a detector's images; found none.")
    model = specs.complete(model, "transformers") | {"num_classes": 0, "rep_size": None}
    size, q = preprocessing.size, params["tokens"].shape[1]
    inner = {name.removeprefix("backbone/"): x for name, x in params.items() if name.startswith("backbone/")}
    model, inner = specs.with_posemb_table(model, inner, size)
    if model["type"] != "vit.ViT" or model["pool"] != "tok" or model["registers"] or not model["posemb_prefix"]:
        raise UserError(
            "transformers represents a detector on a vit.ViT with pool='tok', learned positions and no registers; use --to=workdir."
        )
    arrays, config, _ = huggingface.as_vit(model, inner, size)
    width = params["tokens"].shape[2]
    arrays["embeddings.detection_tokens"] = params["tokens"]
    table = arrays["embeddings.position_embeddings"]
    arrays["embeddings.position_embeddings"] = np.concatenate([table, np.zeros((1, q, width), np.float32)], axis=1)
    if "between" in params:
        arrays[_MID] = params["between"][:, None]
    arrays = {f"vit.{name}": np.ascontiguousarray(x) for name, x in arrays.items()}
    arrays |= to_theirs(
        _heads(), {name: x for name, x in params.items() if name.startswith(("class_head", "box_head"))}
    )
    config = config | {
        "architectures": ["YolosForObjectDetection"], "model_type": "yolos", "image_size": list(size),
        **specs.label_fields(class_names),
        "num_detection_tokens": q, "use_mid_position_embeddings": "between" in params,
        # transformers expects integers for most of them.
        **{theirs: int(x) if (x := task[ours]) == int(x) else x for ours, theirs in _WEIGHTS.items() if ours in task},
    }  # fmt: skip
    described = {
        "image_processor_type": "YolosImageProcessor", "image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std),
        "size": {"height": size[0], "width": size[1]}, "do_pad": False,
    }  # fmt: skip
    write_folder(folder, arrays, {"config.json": config, "preprocessor_config.json": described})
    return []
