"""Describe the ViTs in transformers: how each names its arrays, and what each can represent."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.pretrained import specs
from vit_jax.pretrained.links import Link, conv, dense, from_heads, norm, same, to_heads
from vit_jax.pretrained.pretrained import FlatParams

# In-memory names of transformers 5; on disk it writes the older names.
_ATTENTION = tuple(
    (rf"\.attention\.{new}\.", f".attention.attention.{old}.")
    for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
)
_OUT = (r"\.attention\.o_proj\.", ".attention.output.dense.")
_MLP = ((r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense."))
_BIAS = "relative_position_bias.relative_position_bias_table"


@dataclasses.dataclass(frozen=True)
class Network:
    """How a network names its arrays on disk, below a prefix that models with a head have.

    newer: regexes of in-memory names and their names on disk. block: the name of a block, with {i}; norms, mlp, scales:
    the names of its parts.
    """

    prefix: str
    newer: tuple[tuple[str, str], ...] = ((r"^layers\.", "encoder.layer."), *_ATTENTION, _OUT, *_MLP)
    patches: str = "embeddings.patch_embeddings.projection"
    registers: str = "embeddings.register_tokens"
    block: str = "encoder.layer.{i}"
    norms: tuple[str, str] = ("layernorm_before", "layernorm_after")
    qkv: tuple[str, str, str] = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    out: str = "attention.output.dense"
    mlp: tuple[str, str] = ("intermediate.dense", "output.dense")
    gated: str | None = None
    scales: tuple[str, str] = ("", "")
    norm: str = "layernorm"


_DINOV2 = Network(
    "dinov2.",
    newer=(*_ATTENTION, _OUT, (r"\.mlp\.down_proj\.", ".mlp.weights_out.")),
    norms=("norm1", "norm2"),
    mlp=("mlp.fc1", "mlp.fc2"),
    gated="mlp.weights_in",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
NETWORKS = {
    "vit": Network("vit."),
    "deit": Network("deit.", registers="embeddings.distillation_token"),
    "ijepa": Network("ijepa."),
    "vit_mae": Network("vit."),
    "dinov2": _DINOV2,
    "dinov2_with_registers": dataclasses.replace(_DINOV2, prefix="dinov2_with_registers."),
    "beit": Network(
        "beit.",
        newer=(
            (rf"^layers\.(\d+)\.{re.escape(_BIAS)}", rf"encoder.layer.\1.attention.attention.{_BIAS}"),
            (r"^shared_position_bias\.", "encoder.relative_position_bias."),
            *Network("").newer,
        ),
        scales=("lambda_1", "lambda_2"),
    ),
    "dinov3_vit": Network(
        "model.",
        newer=(),
        patches="embeddings.patch_embeddings",
        block="layer.{i}",
        norms=("norm1", "norm2"),
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        out="attention.o_proj",
        mlp=("mlp.up_proj", "mlp.down_proj"),
        gated="mlp.gate_proj",
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        norm="norm",
    ),
}


def on_disk(arrays: FlatParams, kind: str) -> FlatParams:
    """Rename arrays to their names on disk, without the prefix of the base model."""
    network = NETWORKS[kind]
    renamed = {}
    for name, array in arrays.items():
        name = name.removeprefix(network.prefix)
        for newer, older in network.newer:
            name = re.sub(newer, older, name)
        renamed[name] = array
    return _packed(renamed) if kind.startswith("dinov2") else renamed


def _packed(arrays: FlatParams) -> FlatParams:
    """Concatenate DINOv2's gate and up projections, which are one array on disk."""
    joined = {}
    for name, array in arrays.items():
        if ".mlp.up_proj." in name:
            continue
        if ".mlp.gate_proj." in name:
            array = np.concatenate([array, arrays[name.replace("gate_proj", "up_proj")]])
        joined[name.replace(".mlp.gate_proj.", ".mlp.weights_in.")] = array
    return joined


def links(model: Mapping[str, Any], kind: str, prefix: str) -> list[Link]:
    """Return the name table of a complete spec; `prefix` precedes all names except the heads'."""
    network, embed = NETWORKS[kind], f"{prefix}embeddings"
    table = [
        conv(f"{prefix}{network.patches}.weight", "embed/kernel"),
        same(f"{prefix}{network.patches}.bias", "embed/bias"),
    ]
    optional = {
        "class_token": (f"{embed}.cls_token", "cls"),
        "distilled": (f"{embed}.distillation_token", "dist"),
        "registers": (prefix + network.registers, "registers"),
    }
    table += [same(*names) for field, names in optional.items() if model[field]]
    if model["posemb"] == "learn":
        table.append(same(f"{embed}.position_embeddings", "posemb/table"))
    if model["mask_token"]:
        pattern = "(n b) d -> n b 1 d" if kind.startswith("dinov2") else ""
        table.append(Link(f"{embed}.mask_token", ("mask_token",), pattern))
    for i in range(model["depth"]):
        table += block_links(network, prefix + network.block.format(i=i), f"encoder/block_{i}", model)
    if model["relative_bias"] == "shared":
        table.append(same(f"{prefix}encoder.{_BIAS}", "encoder/relative_bias"))
    if model["norm_after_pool"]:
        table += norm(f"{prefix}pooler.layernorm", "norm")
    else:
        table += norm(prefix + network.norm, "encoder/norm")
    if model["rep_size"]:
        table += dense(f"{prefix}pooler.dense", "rep")
    if model["distilled"] and model["num_classes"]:
        table += dense("cls_classifier", "head") + dense("distillation_classifier", "head_dist")
    elif model["num_classes"]:
        table += dense("classifier", "head")
    return table


def block_links(network: Network, theirs: str, ours: str, model: Mapping[str, Any]) -> list[Link]:
    """Return the name table of one block."""
    heads, table = model["num_heads"], []
    for i, name in enumerate(network.norms, 1):
        table += norm(f"{theirs}.{name}", f"{ours}/norm{i}")
    for their_name, name in zip(network.qkv, ("query", "key", "value"), strict=True):
        has_bias = specs.has_bias(model, name)
        table += to_heads(f"{theirs}.{their_name}", [f"{ours}/attn/{name}"], heads, has_bias)
    table += from_heads(f"{theirs}.{network.out}", f"{ours}/attn/out", heads)
    if model["relative_bias"] == "blocks":
        table.append(same(f"{theirs}.attention.attention.{_BIAS}", f"{ours}/attn/relative_bias"))
    if model["layer_scale"] is not None:
        table += [same(f"{theirs}.{name}", f"{ours}/layer_scale{i}/scale") for i, name in enumerate(network.scales, 1)]
    up, down = network.mlp
    if model["mlp"] != "swiglu":
        return table + dense(f"{theirs}.{up}", f"{ours}/mlp/up") + dense(f"{theirs}.{down}", f"{ours}/mlp/down")
    if network.gated == "mlp.weights_in":  # one array for both
        table += dense(f"{theirs}.{network.gated}", f"{ours}/mlp/gate", f"{ours}/mlp/up")
        return table + dense(f"{theirs}.mlp.weights_out", f"{ours}/mlp/down")
    table += dense(f"{theirs}.{network.gated}", f"{ours}/mlp/gate") + dense(f"{theirs}.{up}", f"{ours}/mlp/up")
    return table + dense(f"{theirs}.{down}", f"{ours}/mlp/down")


def network_of(model: Mapping[str, Any]) -> str:
    """Return the transformers network that is closest to a complete spec."""
    if model["distilled"]:
        return "deit"
    if model["rope"]:
        return "dinov3_vit"
    if model["relative_bias"] != "none" or model["qkv_bias"] == "qv":
        return "beit"
    if not model["num_classes"] and model["layer_scale"] is not None:
        return "dinov2_with_registers" if model["registers"] else "dinov2"
    return "ijepa" if not model["class_token"] and model["pool"] == "gap" else "vit"


def refused(model: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields of a complete spec that a network cannot represent."""
    scaled = kind in ("beit", "dinov3_vit") or kind.startswith("dinov2")
    is_dino = kind.startswith("dino")
    swiglu = model["mlp"] == "swiglu"
    unsupported = {
        "pool": model["pool"] != ("gap" if kind == "ijepa" else "tok")
        and not (kind == "beit" and model["pool"] == "gap" and model["norm_after_pool"]),
        "class_token": kind != "ijepa" and not model["class_token"],
        "posemb": (model["posemb"] != "none") if kind == "dinov3_vit" else kind != "beit" and model["posemb"] == "none",
        "rep_size": model["rep_size"] and (model["num_classes"] or model["distilled"] or kind != "vit"),
        "mlp": swiglu and not is_dino,
        "layer_scale": (model["layer_scale"] is not None) != scaled and (kind != "beit" or bool(model["layer_scale"])),
        "padding": model["padding"] != "valid",
        "stride": model["stride"] and specs.pair(model["stride"]) != specs.pair(model["patch_size"]),
        "registers": model["registers"] and kind not in ("dinov2_with_registers", "dinov3_vit"),
        "norm_after_pool": model["norm_after_pool"] and kind != "beit",
        **{field: model[field] for field in ("stem", "pre_norm", "qk_norm", "attn_norm", "mlp_norm", "post_norm")},
        "posemb_prefix": not model["posemb_prefix"] and kind not in ("ijepa", "dinov3_vit", "dinov2_with_registers"),
        "distilled": model["distilled"] and not model["num_classes"],
        "num_classes": model["num_classes"] and is_dino,
        "mask_token": model["mask_token"] and kind in ("vit", "deit", "ijepa"),
        "qkv_bias": (model["qkv_bias"] == "qv") != (kind == "beit") and kind != "dinov3_vit",
        "rope": kind == "dinov3_vit" and not is_dinov3(model["rope"]),
        "relative_bias": model["relative_bias"] != "none" and kind != "beit",
        "posemb_grid": model["posemb_grid"] is not None,
        "mlp_dim": kind.startswith("dinov2") and specs.dinov2_ratio(model) is None,
    }
    return {field: model[field] for field, is_unsupported in unsupported.items() if is_unsupported}


def is_dinov3(rope: Mapping[str, Any] | None) -> bool:
    """Return whether rotary positions are DINOv3's."""
    rope = rope or {}
    defaults = {"type": "Axial", "coordinates": "centred", "pairs": "halves"}
    return all(rope.get(key, value) == value for key, value in defaults.items())
