"""Convert transformers' ViTs: ViTForImageClassification, DeiTForImageClassificationWithTeacher, Dinov2Model, ..."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.config.hints import fits
from vit_jax.layers.resize import resize_grid
from vit_jax.pretrained import processor, specs
from vit_jax.pretrained.huggingface_names import NETWORKS, Network, links, network_of, on_disk, refused
from vit_jax.pretrained.links import shape_of, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import PREPROCESSOR, check_new, config_value, write_folder
from vit_jax.types import PosembMethod, UserError

_KINDS = "ViT, DeiT, BEiT, MAE, I-JEPA, DINOv2 and DINOv3"
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
# How the authors of the weights resize position embeddings, if not in the way of transformers.
_POSEMB: dict[str, PosembMethod] = {"dinov2": "dinov2", "dinov2_with_registers": "bicubic"}

# Networks whose embeddings transformers resizes to the grid of any image (interpolate_pos_encoding of each), so that
# their processors may make images of another size than the table's: for DINOv2 224 pixels instead of 518.
_RESIZING: dict[str, PosembMethod] = {"dinov2": "bicubic_no_antialias", "dinov2_with_registers": "bicubic"}


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the config is from transformers, for any network, or the arrays have its ViT names."""
    pattern = r"(\w+\.)?embeddings\.patch_embeddings\.(projection\.)?weight"
    return isinstance(config.get("model_type"), str) or any(re.fullmatch(pattern, name) for name in arrays)


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a state dict of a transformers ViT, with its config.json and, under "preprocessor", its processor's.

    A pooler becomes the layer before the head (rep). The distillation token of a DeiT with one head becomes a register,
    which computes the same. Pretraining heads are left out, with a note. Raises UserError for other networks.
    """
    kind = config_value(config, "model_type", str, "vit", origin)
    if kind not in NETWORKS:
        raise UserError(f"{origin} is a {kind!r} of transformers; of its networks only {_KINDS} are supported.")
    arrays, notes = _used(on_disk(arrays, kind), kind, config, origin)
    model, assumed = _spec(arrays, kind, config, origin)
    params = to_ours(links(model, kind, ""), arrays, origin)
    size = _image_size(arrays, model, config, origin)
    channels = params["embed/kernel"].shape[2]
    stated = config_value(config, "preprocessor", dict, {}, origin)
    if kind in _RESIZING and stated and (made := processor.made_size(stated, size, kind, origin)) not in (None, size):
        params, size_notes = _for_images(params, model, size, made, _RESIZING[kind])
        size, notes = made, [*notes, *size_notes]
    images, image_notes = processor.read_preprocessing(stated, size, channels, kind, origin)
    names = _class_names(config, model["num_classes"])
    posemb = _POSEMB.get(kind, "bicubic_no_antialias")
    return Pretrained(model, params, images, names, origin, posemb, notes=(*assumed, *notes, *image_notes))


def _used(arrays: FlatParams, kind: str, config: Mapping[str, Any], origin: str) -> tuple[FlatParams, list[str]]:
    """Return the arrays of the network and its classifier, and notes on the arrays left out."""
    unused = []
    if any(name.endswith("classifier.weight") for name in arrays):
        unused += ["pooler.dense.weight", "pooler.dense.bias"]
    left_out = {"embeddings.mask_token": "the mask token"} if kind in ("vit", "deit", "ijepa") else {}
    if kind.startswith("dinov2"):  # the classifier reads the class token in addition to the mean of the patches
        left_out["classifier."] = "the linear classifier, which reads the class token and the mean of the patches,"
    notes = [
        f"Of {config.get('architectures') or kind}, {what} is left out; pretraining or classification begins with a new one."
        for prefix, what in left_out.items()
        if any(name.startswith(prefix) for name in arrays)
    ]
    arrays = {
        name: array
        for name, array in arrays.items()
        if name not in unused and not name.startswith(tuple(left_out)) and array.size
    }
    if kind == "dinov2_with_registers":  # the registers have no positions
        table = arrays.pop("embeddings.position_embeddings")
        arrays["embeddings.cls_token"] = arrays["embeddings.cls_token"] + table[:, :1]
        arrays["embeddings.position_embeddings"] = table[:, 1:]
    return arrays, notes


def _image_size(
    arrays: FlatParams, model: Mapping[str, Any], config: Mapping[str, Any], origin: str
) -> tuple[int, int]:
    """Return the (height, width) of images that the arrays are for; raises UserError if the config contradicts them."""
    patch = specs.pair(model["patch_size"])
    n = None
    if model["posemb"] == "learn":
        slots = specs.prefix_tokens(model) * model["posemb_prefix"]
        n = shape_of(arrays, "embeddings.position_embeddings", 3, origin)[1] - slots
    side = specs.square_side(n) if n else 224 // patch[0]
    size = specs.pair(config_value(config, "image_size", int | tuple[int, int], (side or 0) * patch[0], origin))
    if min(size) < 1 or (n is not None and specs.num_patches(model, size) != n):
        raise UserError(
            f"{origin} has position embeddings for {n} patches of {patch} pixels, which contradicts "
            f"image_size={config.get('image_size')} in its config.json."
        )
    return size


def _for_images(
    params: FlatParams, model: Mapping[str, Any], old: tuple[int, int], new: tuple[int, int], method: PosembMethod
) -> tuple[FlatParams, list[str]]:
    """Resize the position embeddings of the parameters for images of size `new` (height, width); return a note too."""
    patch = specs.pair(model["patch_size"])
    grids = [(size[0] // patch[0], size[1] // patch[1]) for size in (old, new)]
    prefix = specs.prefix_tokens(model) * model["posemb_prefix"]
    table = params["posemb/table"]
    patches = resize_grid(table[0, prefix:].reshape(*grids[0], -1), grids[1], method).reshape(-1, table.shape[2])
    table = np.concatenate([table[:, :prefix], patches[None].astype(table.dtype)], axis=1)
    note = f"Its position embeddings are for images of {old}; resized to those of {new} that its {PREPROCESSOR} makes."
    return {**params, "posemb/table": table}, [note]


def _spec(arrays: FlatParams, kind: str, config: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    network = NETWORKS[kind]
    width, _, *patch = shape_of(arrays, f"{network.patches}.weight", 4, origin)
    before, after = network.block.split("{i}")
    layers = [int(match[1]) for name in arrays if (match := re.match(rf"{re.escape(before)}(\d+){after}\.", name))]
    first = network.block.format(i=0)
    act = config_value(config, "hidden_act", str, "gelu", origin)
    swiglu = network.gated is not None and f"{first}.{network.gated}.weight" in arrays
    allowed = ["silu"] if swiglu and kind == "dinov3_vit" else ["gelu", "silu"] if swiglu else list(_ACTIVATIONS)
    if act not in allowed:
        raise UserError(f"{origin} has hidden_act={act!r}; expected one of {', '.join(allowed)}.")
    pooler = "pooler.dense.bias"
    if config_value(config, "pooler_act", str, "tanh", origin) != "tanh" and pooler in arrays:
        raise UserError(f"{origin} has pooler_act={config['pooler_act']!r}; expected 'tanh'.")
    heads = config_value(config, "num_attention_heads", int, max(width // 64, 1), origin)
    if heads < 1 or width % heads:
        raise UserError(f"{origin} has width {width}, which is not divisible by num_attention_heads={heads}.")
    head = next((name for name in ("classifier.bias", "cls_classifier.bias") if name in arrays), None)
    distilled = "distillation_classifier.bias" in arrays
    registers = shape_of(arrays, network.registers, 3, origin)[1] if network.registers in arrays else 0
    has_class = "embeddings.cls_token" in arrays
    epsilon = {"dinov2": 1e-6, "dinov2_with_registers": 1e-6, "dinov3_vit": 1e-5}.get(kind, 1e-12)
    down = "mlp.weights_out" if network.gated == "mlp.weights_in" and swiglu else network.mlp[1]
    after_pool = "pooler.layernorm.weight" in arrays
    model = {
        "type": "vit.ViT",
        "num_classes": shape_of(arrays, head, 1, origin)[0] if head else 0,
        "width": width,
        "depth": max(layers, default=-1) + 1,
        "mlp_dim": shape_of(arrays, f"{first}.{down}.weight", 2, origin)[1],
        "num_heads": heads,
        "patch_size": specs.int_or_pair(*patch),
        "pool": "gap" if after_pool or not has_class else "tok",
        "class_token": has_class,
        "distilled": distilled,
        "registers": 0 if distilled else registers,
        "posemb": "learn" if "embeddings.position_embeddings" in arrays else "none",
        "posemb_prefix": kind != "dinov2_with_registers",
        "mask_token": "embeddings.mask_token" in arrays,
        "rep_size": shape_of(arrays, pooler, 1, origin)[0] if pooler in arrays else None,
        "mlp": "swiglu" if swiglu else _ACTIVATIONS[act],
        "norm_eps": config_value(config, "layer_norm_eps", float, epsilon, origin),
        "norm_after_pool": after_pool,
        "qkv_bias": _qkv_bias(arrays, f"{first}.", network),
    }
    if network.scales[0] and f"{first}.{network.scales[0]}" in arrays:
        key = "layer_scale_init_value" if kind == "beit" else "layerscale_value"
        model["layer_scale"] = config_value(config, key, float, 1.0, origin)
    if kind == "beit":
        tables = [name for name in arrays if name.endswith("relative_position_bias_table")]
        model["relative_bias"] = (
            ("shared" if len(tables) == 1 and "layer" not in tables[0] else "blocks") if tables else "none"
        )
    if kind == "dinov3_vit":
        model["rope"] = _rope(config, origin)
    note = f"It has no config.json: assumed num_heads={heads}, mlp='gelu', norm_eps={epsilon}."
    return specs.complete(model, "vit_jax"), [] if "model_type" in config else [note]


def _qkv_bias(arrays: FlatParams, first: str, network: Network) -> bool | str:
    query, key, _ = (f"{first}{name}.bias" in arrays for name in network.qkv)
    return "qv" if query and not key else query


def _rope(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return DINOv3's rotary positions, with the training augmentation stated in its config."""
    given = {"base": ("rope_theta", 100.0), "shift": ("pos_embed_shift", None)}
    given |= {"jitter": ("pos_embed_jitter", None), "rescale": ("pos_embed_rescale", None)}
    values = {ours: config_value(config, key, float, default, origin) for ours, (key, default) in given.items()}
    return {"type": "Axial"} | {key: value for key, value in values.items() if value is not None}


def _class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    names: list[Any] = [labels.get(str(i)) for i in range(classes)] if isinstance(labels, dict) else []
    if not names or not fits(names, list[str]) or names == [f"LABEL_{i}" for i in range(classes)]:
        return None
    return tuple(names)


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
    kind = network_of(model)
    size = preprocessing.size if preprocessing else specs.image_size(model, params, "transformers")
    rows, columns = specs.grid_of(model, size)
    if model["relative_bias"] != "none" and rows != columns:
        raise UserError(
            f"transformers reads the relative biases of {rows} x {columns} patches with rows and columns exchanged; it "
            "represents model.relative_bias only on square grids: try --to=timm."
        )
    if kind in ("vit", "deit", "ijepa", "vit_mae") or kind.startswith("dinov2"):
        model, params = specs.with_posemb_table(model, params, size)
    model, params = specs.with_embed_bias(model, params)
    config, notes = _config(model, kind, size, params["embed/kernel"].shape[2], class_names)
    configs: dict[str, Mapping[str, Any]] = {"config.json": config}
    if preprocessing is None:
        notes.append("It has no preprocessor_config.json: transformers cannot express its preprocessing.")
    else:
        configs["preprocessor_config.json"], image_notes = processor.make_config(preprocessing)
        notes += image_notes
    arrays = to_theirs(links(model, kind, NETWORKS[kind].prefix if model["num_classes"] else ""), params)
    write_folder(folder, _whole(arrays, model, kind), configs)
    return notes


def as_vit(
    model: Mapping[str, Any], params: FlatParams, size: tuple[int, int]
) -> tuple[FlatParams, dict[str, Any], list[str]]:
    """Return a ViTModel's arrays with their names on disk, its config, and notes; raises UserError if it is not one."""
    _check(model)
    if (kind := network_of(model)) != "vit":
        raise UserError(f"transformers would represent this network as {_CLASSES[kind][1]}; expected a plain ViT.")
    model, params = specs.with_embed_bias(model, params)
    config, notes = _config(model, kind, size, params["embed/kernel"].shape[2], None)
    return to_theirs(links(model, kind, ""), params), config, notes


def _whole(arrays: FlatParams, model: Mapping[str, Any], kind: str) -> FlatParams:
    """Add arrays that the network always has but that do not change its outputs."""
    width = model["width"]
    if kind == "dinov3_vit":
        empty = {"embeddings.register_tokens": np.zeros((1, 0, width), np.float32)}
        arrays = empty | {"embeddings.mask_token": np.zeros((1, 1, width), np.float32)} | arrays
    if kind == "dinov2_with_registers":
        table = arrays["embeddings.position_embeddings"]
        if not model["posemb_prefix"]:
            table = np.pad(table, ((0, 0), (1, 0), (0, 0)))
        else:  # only the class token has its own position
            registers = arrays["embeddings.register_tokens"] + table[:, 1 : 1 + model["registers"]]
            table = np.delete(table, slice(1, 1 + model["registers"]), axis=1)
            arrays = arrays | {"embeddings.register_tokens": registers}
        mask = {"embeddings.mask_token": np.zeros((1, width), np.float32)}
        arrays = mask | arrays | {"embeddings.position_embeddings": np.ascontiguousarray(table)}
    return arrays


def _config(
    model: Mapping[str, Any],
    kind: str,
    size: tuple[int, int],
    channels: int,
    class_names: tuple[str, ...] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the config.json of a complete spec, and notes."""
    classes = model["num_classes"]
    name, base = _CLASSES[kind]
    notes = [] if classes else [f"It has no classes, so it is a {base}: load it with AutoModel."]
    activations = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "swiglu": "silu"}
    config: dict[str, Any] = {
        "architectures": [name if classes else base],
        "model_type": kind,
        "hidden_size": model["width"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["mlp_dim"],
        "hidden_act": activations[model["mlp"]],
        "layer_norm_eps": model["norm_eps"],
        "qkv_bias": bool(model["qkv_bias"]),
        "image_size": specs.int_or_pair(*size),
        "patch_size": specs.int_or_pair(*specs.pair(model["patch_size"])),
        "num_channels": channels,
        "pooler_output_size": model["rep_size"] or model["width"],
        **specs.label_fields(class_names or [f"LABEL_{i}" for i in range(classes)]),
        "dtype": "float32",
    }
    own = (
        _dinov2_config if kind.startswith("dinov2") else {"beit": _beit_config, "dinov3_vit": _dinov3_config}.get(kind)
    )
    return config | (own(model) if own else {}), notes


# Classes of models with and without a linear classifier.
_CLASSES = {
    "vit": ("ViTForImageClassification", "ViTModel"),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiTModel"),
    "ijepa": ("IJepaForImageClassification", "IJepaModel"),
    "beit": ("BeitForImageClassification", "BeitModel"),
    "dinov2": ("", "Dinov2Model"),
    "dinov2_with_registers": ("", "Dinov2WithRegistersModel"),
    "dinov3_vit": ("", "DINOv3ViTModel"),
}


def _dinov2_config(model: Mapping[str, Any]) -> dict[str, Any]:
    swiglu = model["mlp"] == "swiglu"
    return {
        "use_swiglu_ffn": swiglu,
        "mlp_ratio": specs.dinov2_ratio(model),
        "layerscale_value": model["layer_scale"],
        "use_mask_token": model["mask_token"],
        **({"hidden_act": "gelu"} if swiglu else {}),
        **({"num_register_tokens": model["registers"]} if model["registers"] else {}),
    }


def _beit_config(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layer_scale_init_value": model["layer_scale"] or 0.0,
        "use_mask_token": model["mask_token"],
        "use_absolute_position_embeddings": model["posemb"] == "learn",
        "use_relative_position_bias": model["relative_bias"] == "blocks",
        "use_shared_relative_position_bias": model["relative_bias"] == "shared",
        "use_mean_pooling": model["norm_after_pool"],
    }


def _dinov3_config(model: Mapping[str, Any]) -> dict[str, Any]:
    rope = model["rope"]
    return {
        "query_bias": bool(model["qkv_bias"]),
        "key_bias": model["qkv_bias"] is True,
        "value_bias": bool(model["qkv_bias"]),
        "use_gated_mlp": model["mlp"] == "swiglu",
        "layerscale_value": model["layer_scale"],
        "num_register_tokens": model["registers"],
        "rope_theta": rope.get("base", 100.0),
        **{f"pos_embed_{name}": rope.get(name) for name in ("shift", "jitter", "rescale")},
    }


def _check(model: Mapping[str, Any]) -> None:
    if model["type"] != "vit.ViT":
        raise UserError(
            f"transformers cannot represent model.type={model['type']!r}, as it has no Mixer; use --to=timm."
        )
    kind = network_of(model)
    for field, value in refused(model, kind).items():
        alternative = "workdir" if field in ("rep_size", "padding", "stride") else "timm"
        raise UserError(
            f"transformers' {_CLASSES[kind][1]} cannot represent model.{field}={value!r}; try --to={alternative}."
        )
