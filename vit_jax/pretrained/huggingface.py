"""transformers' ViT and DeiT: ViTForImageClassification, ViTModel, DeiTForImageClassificationWithTeacher, ..."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.config.hints import fits
from vit_jax.pretrained import processor, specs
from vit_jax.pretrained.links import (
    Link,
    conv,
    dense,
    from_heads,
    norm,
    same,
    shape_of,
    to_heads,
    to_ours,
    to_theirs,
)
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new, config_value, write_folder
from vit_jax.types import UserError

_PATCHES = "embeddings.patch_embeddings.projection.weight"
# Names of transformers 5 in memory; on disk it writes the older names.
_NEWER = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the config is one of transformers, whatever the network, or the arrays have its ViT's names."""
    return isinstance(config.get("model_type"), str) or any(
        re.fullmatch(rf"((vit|deit)\.)?{re.escape(_PATCHES)}", name) for name in arrays
    )


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a state dict of transformers' ViT or DeiT, with its config.json and, under "preprocessor", its processor's.

    A pooler becomes the layer before the head (rep). The distillation token of a DeiT with one head becomes a register,
    which computes the same. Raises UserError for other networks.
    """
    kind = config_value(config, "model_type", str, "vit", origin)
    if kind not in ("vit", "deit"):
        raise UserError(f"{origin} is a {kind!r} of transformers; of its networks only ViT and DeiT are supported.")
    arrays = _rename(arrays)
    model, notes = _spec(arrays, config, origin)
    params = to_ours(links(model, ""), arrays, origin)
    n = shape_of(arrays, "embeddings.position_embeddings", 3, origin)[1] - specs.prefix_tokens(model)
    patch, side = specs.pair(model["patch_size"]), specs.square_side(n)
    size = specs.pair(config_value(config, "image_size", int | tuple[int, int], (side or 0) * patch[0], origin))
    if min(size) < 1 or specs.num_patches(model, size) != n:
        raise UserError(
            f"{origin} has position embeddings for {n} patches of {patch} pixels, which contradicts "
            f"image_size={config.get('image_size')} in its config.json."
        )
    images, image_notes = processor.read_preprocessing(
        config_value(config, "preprocessor", dict, {}, origin), size, arrays[_PATCHES].shape[1], kind, origin
    )
    names = _class_names(config, model["num_classes"])
    return Pretrained(model, params, images, names, origin, "bicubic_no_antialias", notes=tuple(notes + image_notes))


def _rename(arrays: FlatParams) -> FlatParams:
    """Use the names on disk without the model's prefix, and drop arrays that classification does not use."""
    renamed = {}
    for name, array in arrays.items():
        name = re.sub(r"^(vit|deit)\.", "", name)
        for newer, older in _NEWER:
            name = re.sub(newer, older, name)
        renamed[name] = array
    unused = ["embeddings.mask_token"]
    if any(name.endswith("classifier.weight") for name in renamed):
        unused += ["pooler.dense.weight", "pooler.dense.bias"]
    return {name: array for name, array in renamed.items() if name not in unused}


def _spec(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    width, _, *patch = shape_of(arrays, _PATCHES, 4, origin)
    layers = [int(match[1]) for name in arrays if (match := re.match(r"encoder\.layer\.(\d+)\.", name))]
    act = config_value(config, "hidden_act", str, "gelu", origin)
    if act not in _ACTIVATIONS:
        raise UserError(f"{origin} has hidden_act={act!r}; expected one of {', '.join(_ACTIVATIONS)}.")
    pooler = "pooler.dense.bias"
    if config_value(config, "pooler_act", str, "tanh", origin) != "tanh" and pooler in arrays:
        raise UserError(f"{origin} has pooler_act={config['pooler_act']!r}; expected 'tanh'.")
    heads = config_value(config, "num_attention_heads", int, max(width // 64, 1), origin)
    if heads < 1 or width % heads:
        raise UserError(f"{origin} has width {width}, which is not divisible by num_attention_heads={heads}.")
    head = next((name for name in ("classifier.bias", "cls_classifier.bias") if name in arrays), None)
    has_token, distilled = "embeddings.distillation_token" in arrays, "distillation_classifier.bias" in arrays
    model = {
        "type": "vit.ViT",
        "num_classes": shape_of(arrays, head, 1, origin)[0] if head else 0,
        "width": width,
        "depth": max(layers, default=-1) + 1,
        "mlp_dim": shape_of(arrays, "encoder.layer.0.intermediate.dense.bias", 1, origin)[0],
        "num_heads": heads,
        "patch_size": specs.int_or_pair(*patch),
        "pool": "tok",
        "distilled": distilled,
        "registers": int(has_token and not distilled),
        "rep_size": shape_of(arrays, pooler, 1, origin)[0] if pooler in arrays else None,
        "mlp": _ACTIVATIONS[act],
        "norm_eps": config_value(config, "layer_norm_eps", float, 1e-12, origin),
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in arrays,
    }
    note = f"It has no config.json: assumed num_heads={heads}, mlp='gelu', norm_eps=1e-12."
    return specs.complete(model, "vit_jax"), [] if "model_type" in config else [note]


def _class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    names: list[Any] = [labels.get(str(i)) for i in range(classes)] if isinstance(labels, dict) else []
    if not names or not fits(names, list[str]) or names == [f"LABEL_{i}" for i in range(classes)]:
        return None
    return tuple(names)


def links(model: Mapping[str, Any], prefix: str) -> list[Link]:
    """Return the name table of a complete spec; `prefix` precedes all names but the heads'."""
    embed, heads = f"{prefix}embeddings", model["num_heads"]
    table = [
        conv(f"{embed}.patch_embeddings.projection.weight", "embed/kernel"),
        same(f"{embed}.patch_embeddings.projection.bias", "embed/bias"),
        same(f"{embed}.cls_token", "cls"),
        same(f"{embed}.position_embeddings", "posemb/table"),
        *norm(f"{prefix}layernorm", "encoder/norm"),
    ]
    if model["distilled"] or model["registers"]:
        table.append(same(f"{embed}.distillation_token", "dist" if model["distilled"] else "registers"))
    for i in range(model["depth"]):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"encoder/block_{i}"
        table += norm(f"{theirs}.layernorm_before", f"{ours}/norm1")
        table += norm(f"{theirs}.layernorm_after", f"{ours}/norm2")
        for name in ("query", "key", "value"):
            table += to_heads(f"{theirs}.attention.attention.{name}", [f"{ours}/attn/{name}"], heads, model["qkv_bias"])
        table += from_heads(f"{theirs}.attention.output.dense", f"{ours}/attn/out", heads)
        table += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        table += dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
    if model["rep_size"]:
        table += dense(f"{prefix}pooler.dense", "rep")
    if model["distilled"] and model["num_classes"]:
        table += dense("cls_classifier", "head") + dense("distillation_classifier", "head_dist")
    elif model["num_classes"]:
        table += dense("classifier", "head")
    return table


# Writing.


def write(
    folder: Path,
    model: Mapping[str, Any],
    params: FlatParams,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> list[str]:
    """Write config.json, preprocessor_config.json and model.safetensors into a new folder; return notes.

    Raises UserError naming the field for a model that transformers' ViT and DeiT cannot represent.
    """
    check_new(folder)
    model = specs.complete(model, "transformers")
    _check(model)
    size = preprocessing.size if preprocessing else specs.image_size(model, params, "transformers")
    model, params = specs.with_posemb_table(model, params, size)
    model, params = specs.with_embed_bias(model, params)
    kind, classes = "deit" if model["distilled"] else "vit", model["num_classes"]
    name = {"vit": "ViTForImageClassification", "deit": "DeiTForImageClassificationWithTeacher"}[kind]
    notes = [] if classes else ["It has no classes, so it is a ViTModel: load it with AutoModel."]
    labels = {str(i): label for i, label in enumerate(class_names or [f"LABEL_{i}" for i in range(classes)])}
    activations = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
    config = {
        "architectures": [name if classes else "ViTModel"],
        "model_type": kind,
        "hidden_size": model["width"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["mlp_dim"],
        "hidden_act": activations[model["mlp"]],
        "layer_norm_eps": model["norm_eps"],
        "qkv_bias": model["qkv_bias"],
        "image_size": specs.int_or_pair(*size),
        "patch_size": specs.int_or_pair(*specs.pair(model["patch_size"])),
        "num_channels": params["embed/kernel"].shape[2],
        "pooler_output_size": model["rep_size"] or model["width"],
        "id2label": labels,
        "label2id": {label: i for i, label in enumerate(labels.values())},
        "dtype": "float32",
    }
    configs: dict[str, Mapping[str, Any]] = {"config.json": config}
    if preprocessing is None:
        notes.append("It has no preprocessor_config.json: transformers cannot express its preprocessing.")
    else:
        configs["preprocessor_config.json"], image_notes = processor.make_config(preprocessing)
        notes += image_notes
    write_folder(folder, to_theirs(links(model, f"{kind}." if classes else ""), params), configs)
    return notes


def _check(model: Mapping[str, Any]) -> None:
    if model["type"] != "vit.ViT":
        raise UserError(
            f"transformers cannot represent model.type={model['type']!r}, as it has no Mixer; use --to=timm."
        )
    has_head = model["num_classes"] or model["distilled"]
    unsupported = {
        "pool": model["pool"] != "tok",
        "posemb": model["posemb"] == "none",
        "rep_size": model["rep_size"] and has_head,
        "mlp": model["mlp"] == "swiglu",
        "layer_scale": model["layer_scale"] is not None,
        "padding": model["padding"] != "valid",
        "stride": model["stride"] and specs.pair(model["stride"]) != specs.pair(model["patch_size"]),
        **{field: model[field] for field in ("stem", "registers", "norm_after_pool", "pre_norm", "qk_norm")},
        "posemb_prefix": not model["posemb_prefix"],
        "distilled": model["distilled"] and not model["num_classes"],
    }
    for field, is_unsupported in unsupported.items():
        if is_unsupported:
            alternative = "workdir" if field in ("rep_size", "padding", "stride") else "timm"
            raise UserError(
                f"transformers' ViT cannot represent model.{field}={model[field]!r}; try --to={alternative}."
            )
