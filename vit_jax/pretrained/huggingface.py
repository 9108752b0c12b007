"""The weights of transformers' ViT and DeiT: ViTForImageClassification, ViTModel, DeiTForImageClassificationWithTeacher, ..."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.config.kinds import fits as is_kind
from vit_jax.pretrained import folder as folders
from vit_jax.pretrained import specs
from vit_jax.pretrained.huggingface_images import describe, preprocessing
from vit_jax.pretrained.links import Flat, Link, conv, same, to_ours, to_theirs
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.pretrained import Pretrained
from vit_jax.pretrained.timm_config import take
from vit_jax.pretrained.torch_links import dense, from_heads, norm, shape_of, to_heads
from vit_jax.types import UserError

_EMBED = "embeddings.patch_embeddings.projection.weight"
# Names of transformers 5 in memory; on disk it writes the older ones.
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
    **{"gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu"},
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh", "gelu_fast"), "gelu_tanh"),
}


def fits(arrays: Flat, config: Mapping[str, Any]) -> bool:
    """Whether the config is one of transformers, of whatever network, or arrays are named as its ViT's."""
    return isinstance(config.get("model_type"), str) or any(
        re.fullmatch(rf"((vit|deit)\.)?{re.escape(_EMBED)}", name) for name in arrays
    )


def read(arrays: Flat, config: Mapping[str, Any], origin: str) -> Pretrained:
    """The model in a state dict of transformers' ViT or DeiT, with its config.json and, under "preprocessor", how images are
    prepared.

    A pooler is the layer before the head (rep). The distillation token of a DeiT with one head is a register, which is what it
    does there. Raises UserError for other networks.
    """
    kind = take(config, "model_type", str, "vit", origin)
    if kind not in ("vit", "deit"):
        raise UserError(
            f"{origin} is a {kind!r} of transformers; of its networks only ViT and DeiT are understood, beside those of timm."
        )
    arrays = _classic(arrays)
    model, notes = _model(arrays, config, origin)
    params = to_ours(links(model, ""), arrays, origin)
    prefix = specs.prefix_tokens(model)
    n = shape_of(arrays, "embeddings.position_embeddings", 3, origin)[1] - prefix
    patch, side = specs.pair(model["patch_size"]), specs.square_side(n)
    size = specs.pair(take(config, "image_size", int | tuple[int, int], (side or 0) * patch[0], origin))
    if min(size) < 1 or (size[0] // patch[0]) * (size[1] // patch[1]) != n:
        raise UserError(
            f"{origin} is for {n} patches of {patch} pixels, but its config.json says image_size={config.get('image_size')}."
        )
    images, inexact = preprocessing(
        take(config, "preprocessor", dict, {}, origin), size, arrays[_EMBED].shape[1], kind, origin
    )
    names = _class_names(config, model["num_classes"])
    return Pretrained(model, params, images, names, origin, "bicubic", tuple(notes + inexact))


def _classic(arrays: Flat) -> Flat:
    """Arrays by the names on disk without the model's prefix, without what takes no part in classification."""
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


def _model(arrays: Flat, config: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    width, _, *patch = shape_of(arrays, _EMBED, 4, origin)
    layers = [int(match[1]) for name in arrays if (match := re.match(r"encoder\.layer\.(\d+)\.", name))]
    act = take(config, "hidden_act", str, "gelu", origin)
    if act not in _ACTIVATIONS:
        raise UserError(f"{origin} has hidden_act={act!r}; understood are {', '.join(_ACTIVATIONS)}.")
    if take(config, "pooler_act", str, "tanh", origin) != "tanh" and "pooler.dense.bias" in arrays:
        raise UserError(f"{origin} has pooler_act={config['pooler_act']!r}; only tanh is understood.")
    heads = take(config, "num_attention_heads", int, max(width // 64, 1), origin)
    if heads < 1 or width % heads:
        raise UserError(f"{origin} has a width of {width}, which num_attention_heads={heads} do not divide.")
    head = next((name for name in ("classifier.bias", "cls_classifier.bias") if name in arrays), None)
    pooler = "pooler.dense.bias"
    has_token, distilled = "embeddings.distillation_token" in arrays, "distillation_classifier.bias" in arrays
    model = {
        "type": "vit.ViT",
        "num_classes": shape_of(arrays, head, 1, origin)[0] if head else 0,
        "width": width,
        "depth": max(layers, default=-1) + 1,
        "mlp_dim": shape_of(arrays, "encoder.layer.0.intermediate.dense.bias", 1, origin)[0],
        "num_heads": heads,
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "pool": "tok",
        "distilled": distilled,
        "registers": int(has_token and not distilled),
        "rep_size": shape_of(arrays, pooler, 1, origin)[0] if pooler in arrays else None,
        "mlp": _ACTIVATIONS[act],
        "norm_eps": take(config, "layer_norm_eps", float, 1e-12, origin),
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in arrays,
    }
    assumed = f"There is no config.json beside it: assumed num_heads={heads}, mlp='gelu', norm_eps=1e-12."
    return specs.complete(model, "ours"), [] if "model_type" in config else [assumed]


def _class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    names: list[Any] = [labels.get(str(i)) for i in range(classes)] if isinstance(labels, dict) else []
    if not names or not is_kind(names, list[str]) or names == [f"LABEL_{i}" for i in range(classes)]:
        return None
    return tuple(names)


def links(model: Mapping[str, Any], prefix: str) -> list[Link]:
    """The table of a complete spec; `prefix` stands before the names of all but the heads."""
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
        table += norm(f"{theirs}.layernorm_before", f"{ours}/norm1") + norm(
            f"{theirs}.layernorm_after", f"{ours}/norm2"
        )
        for name in ("query", "key", "value"):
            table += to_heads(f"{theirs}.attention.attention.{name}", [f"{ours}/attn/{name}"], heads, model["qkv_bias"])
        table += from_heads(f"{theirs}.attention.output.dense", f"{ours}/attn/out", heads)
        table += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up") + dense(
            f"{theirs}.output.dense", f"{ours}/mlp/down"
        )
    if model["rep_size"]:
        table += dense(f"{prefix}pooler.dense", "rep")
    if model["distilled"] and model["num_classes"]:
        table += dense("cls_classifier", "head") + dense("distillation_classifier", "head_dist")
    elif model["num_classes"]:
        table += dense("classifier", "head")
    return table


def _check(model: Mapping[str, Any]) -> None:
    if model["type"] != "vit.ViT":
        raise UserError(
            f"model.type={model['type']!r} cannot be written for transformers, which has no Mixer; --to=timm can."
        )
    has_head = model["num_classes"] or model["distilled"]
    refused = {
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
    for field, is_refused in refused.items():
        if is_refused:
            also = "" if field in ("rep_size", "padding", "stride") else "; --to=timm may"
            raise UserError(
                f"model.{field}={model[field]!r} cannot be written for transformers, whose ViT has no such layer{also}."
            )


def write(
    folder: Path,
    model: Mapping[str, Any],
    params: Flat,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> list[str]:
    """Writes config.json, preprocessor_config.json and model.safetensors into a new folder; gives notes.

    Raises UserError, which names the field, for a model that transformers' ViT and DeiT are not.
    """
    folders.check_new(folder)
    model = specs.complete(model, "transformers")
    _check(model)
    size = preprocessing.size if preprocessing else specs.image_size(model, params, "transformers")
    model, params = specs.explicit(model, params, size)
    kind = "deit" if model["distilled"] else "vit"
    name = {"vit": "ViTForImageClassification", "deit": "DeiTForImageClassificationWithTeacher"}[kind]
    if not model["num_classes"]:
        name = "ViTModel"
    notes = ["Without classes it is a ViTModel: load it with AutoModel."] if not model["num_classes"] else []
    labels = dict(enumerate(class_names or [f"LABEL_{i}" for i in range(model["num_classes"])]))
    acts = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
    patch = specs.pair(model["patch_size"])
    config = {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": model["width"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["mlp_dim"],
        "hidden_act": acts[model["mlp"]],
        "layer_norm_eps": model["norm_eps"],
        "qkv_bias": model["qkv_bias"],
        "image_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": patch[0] if patch[0] == patch[1] else list(patch),
        "num_channels": params["embed/kernel"].shape[2],
        "pooler_output_size": model["rep_size"] or model["width"],
        "id2label": {str(i): label for i, label in labels.items()},
        "label2id": {label: i for i, label in labels.items()},
        "dtype": "float32",
    }
    records: dict[str, Mapping[str, Any]] = {"config.json": config}
    if preprocessing is None:
        notes.append("There is no preprocessor_config.json, as transformers cannot say what this model takes.")
    else:
        records["preprocessor_config.json"] = describe(preprocessing)
    folders.write(folder, to_theirs(links(model, f"{kind}." if model["num_classes"] else ""), params), records)
    return notes
