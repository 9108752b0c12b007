"""Convert transformers' UperNetForSemanticSegmentation with a Swin: read, write and name its arrays."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.pretrained import processor, specs, swin
from vit_jax.pretrained.links import Link, conv, dense, norm, same, shape_of, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new, config_value, write_folder
from vit_jax.types import UserError

_NORMS = "hidden_states_norms."  # under "backbone." in the file
_STATS = "batch_stats/"


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the config describes an UPerNet."""
    return config.get("model_type") == "upernet"


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a state dict of UperNetForSemanticSegmentation; raises UserError for backbones other than Swin.

    The auxiliary head, which only training uses, is left out. If the file lacks the backbone's last LayerNorm, which
    the head does not read, one with scale 1 and bias 0 is added.
    """
    backbone = config_value(config, "backbone_config", dict, {}, origin)
    if backbone.get("model_type") not in ("swin", "swinv2"):
        raise UserError(f"{origin} is an UPerNet over {backbone.get('model_type')!r}; expected a Swin of transformers.")
    kept = {name: x for name, x in arrays.items() if not name.startswith("auxiliary_head.")}
    notes = ["Its auxiliary head, which is for training, is left out."] if len(kept) < len(arrays) else []
    kept = {name: x for name, x in kept.items() if not name.endswith("num_batches_tracked")}
    kept = {re.sub(r"^backbone\.(swin\.)?", "", name): x for name, x in kept.items()}
    head = {name: x for name, x in kept.items() if name.startswith(("decode_head.", _NORMS))}
    inner = {name: x for name, x in kept.items() if name not in head}
    stages = [int(name.removeprefix("stage")) for name in _stage_names(backbone, origin)]
    depth = len(backbone.get("depths", ()))
    if stages != list(range(1, depth + 1)):
        raise UserError(f"{origin} reads the stages {stages} of {depth}; expected all of them.")
    if "layernorm.weight" not in inner:
        (width,) = shape_of(inner, f"encoder.layers.{depth - 1}.blocks.0.layernorm_before.weight", 1, origin)
        inner |= {"layernorm.weight": np.ones(width, np.float32), "layernorm.bias": np.zeros(width, np.float32)}
    notes += _notes(config_value(backbone, "image_size", int, 224, origin), backbone)
    found = swin.read(inner, dict(backbone) | {"preprocessor": config.get("preprocessor") or {}}, origin)
    scales = tuple(config_value(config, "pool_scales", tuple[int, ...], (1, 2, 3, 6), origin))
    width = shape_of(head, "decode_head.bottleneck.conv.weight", 4, origin)[0]
    table = links(depth, scales)
    converted = to_ours(table, head, origin)
    params = {f"backbone/{name}": x for name, x in found.params.items()}
    params |= {name if name.startswith(_STATS) else f"head/{name}": x for name, x in converted.items()}
    (classes,) = shape_of(head, "decode_head.classifier.bias", 1, origin)
    names = specs.label_names(config, classes)
    task = {"type": "segment.Segment", "layers": tuple(range(depth)),
            "head": {"type": "UperNet", "width": width, "pooled": scales, "norms": True}}  # fmt: skip
    return Pretrained(found.model, params, found.preprocessing, names, origin, found.posemb, found.patches,
                      (*notes, *found.notes), task)  # fmt: skip


def _notes(side: int, backbone: Mapping[str, Any]) -> list[str]:
    """Note a difference on small images: transformers shifts a last map of one window, this library does not."""
    last = side // (backbone.get("patch_size", 4) * 2 ** (len(backbone["depths"]) - 1))
    small = "Images of {} pixels make the last map one window, in which transformers' backbones shift and this one does not."
    return [small.format(side)] if last <= backbone.get("window_size", 7) else []


def _stage_names(backbone: Mapping[str, Any], origin: str) -> list[str]:
    return config_value(backbone, "out_features", list[str], ["stage1", "stage2", "stage3", "stage4"], origin)


def links(depth: int, pooled: tuple[int, ...]) -> list[Link]:
    """Return the name table of the head and of the norms before it; batch statistics are under "batch_stats/"."""

    def block(theirs: str, ours: str) -> list[Link]:
        names = {"running_mean": "mean", "running_var": "var"}
        return [
            conv(f"{theirs}.conv.weight", f"{ours}/conv/kernel"),
            *norm(f"{theirs}.batch_norm", f"{ours}/norm"),
            *(same(f"{theirs}.batch_norm.{a}", f"{_STATS}{ours}/norm/{b}") for a, b in names.items()),
        ]

    table = [link for i in range(depth) for link in norm(f"{_NORMS}stage{i + 1}", f"norm_{i}")]
    for i in range(len(pooled)):
        table += block(f"decode_head.psp_modules.{i}.1", f"pool_{i}")
    for i in range(depth - 1):
        table += block(f"decode_head.lateral_convs.{i}", f"lateral_{i}") + block(
            f"decode_head.fpn_convs.{i}", f"fuse_{i}"
        )
    table += block("decode_head.bottleneck", "context") + block("decode_head.fpn_bottleneck", "fuse")
    kernel, bias = dense("decode_head.classifier", "out")
    return [*table, Link(kernel.theirs, kernel.ours, "(n o) i 1 1 -> n i o"), bias]


def write(
    folder: Path,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    params: FlatParams,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...],
) -> list[str]:
    """Write a folder that transformers' UperNetForSemanticSegmentation loads; return notes.

    params: of backbone and head, with batch statistics under "batch_stats/". Raises UserError if unsupported.
    """
    check_new(folder)
    head, depth = task.get("head") or {}, len(model.get("depths", ()))
    layers = tuple(i % depth for i in task.get("layers", (-1,))) if depth else ()
    if model["type"] != "swin.Swin" or head.get("type") != "UperNet" or not head.get("norms", True):
        raise UserError(
            "transformers represents a head UperNet with norms=True on a swin.Swin; "
            f"found {head.get('type', 'Linear')} on {model['type']}: use --to=workdir."
        )
    if layers != tuple(range(depth)):
        raise UserError(f"transformers' UPerNet reads all stages; found task.layers={task.get('layers')} of {depth}.")
    if preprocessing is None:
        raise UserError("transformers needs the size of the images of a Swin; found none.")
    pooled = tuple(head.get("pooled", (1, 2, 3, 6)))
    inner = {n.removeprefix("backbone/"): x for n, x in params.items() if n.startswith("backbone/")}
    of_head = {n.removeprefix("head/"): x for n, x in params.items() if not n.startswith("backbone/")}
    arrays = to_theirs(links(depth, pooled), of_head)
    arrays = {f"backbone.{name}" if name.startswith(_NORMS) else name: x for name, x in arrays.items()}
    plain = swin.DEFAULTS | dict(model) | {"num_classes": 0, "mask_token": False}
    inner.pop("mask_token", None)
    arrays |= {f"backbone.swin.{name}": x for name, x in to_theirs(swin.links(plain, "transformers"), inner).items()}
    configs, notes = swin.transformers_configs(plain, preprocessing, params["backbone/embed/kernel"].shape[2], None)
    stages = [f"stage{i + 1}" for i in range(depth)]
    config = {
        "architectures": ["UperNetForSemanticSegmentation"], "model_type": "upernet",
        "backbone_config": configs["config.json"] | {"out_features": stages, "out_indices": list(range(1, depth + 1))},
        "hidden_size": head.get("width", 512), "pool_scales": list(pooled), "use_auxiliary_head": False,
        **specs.label_fields(class_names), "dtype": "float32",
    }  # fmt: skip
    notes += _notes(min(preprocessing.size), configs["config.json"])
    described, more = processor.make_config(preprocessing)
    write_folder(folder, arrays, {"config.json": config, "preprocessor_config.json": described})
    return notes + more
