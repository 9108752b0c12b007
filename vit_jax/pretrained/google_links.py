"""Which array of big_vision holds which of ours; all of them have the shapes of ours."""

from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained.links import Link, same


def links(model: Mapping[str, Any]) -> list[Link]:
    """The table of a complete spec."""
    table = _mixer_links(model["depth"]) if model["type"] == "mixer.Mixer" else _vit_links(model)
    return table + (_dense("head", "head") if model["num_classes"] else [])


def _vit_links(model: Mapping[str, Any]) -> list[Link]:
    table = _dense("embedding", "embed")
    if model["class_token"]:
        table.append(same("cls", "cls"))
    if model["posemb"] == "learn":
        table.append(same("pos_embedding", "posemb/table"))
    for i, units in enumerate(model["stem"]["stages"] if model["stem"] else ()):
        for j in range(units):
            table += _unit(f"block{i + 1}/unit{j + 1}", f"stem/stage_{i}/unit_{j}", projected=j == 0)
    if model["stem"]:
        table += [same("conv_root/kernel", "stem/root/kernel"), *_norm("gn_root", "stem/root_norm")]
    for i in range(model["depth"]):
        theirs, ours = f"Transformer/encoderblock_{i}", f"encoder/block_{i}"
        table += _norm(f"{theirs}/LayerNorm_0", f"{ours}/norm1") + _norm(f"{theirs}/LayerNorm_1", f"{ours}/norm2")
        table += _attention(theirs, ours) + _mlp(f"{theirs}/MlpBlock_0", f"{ours}/mlp")
    table += _norm("Transformer/encoder_norm", "encoder/norm")
    if model["pool"] == "map":
        table += [same("MAPHead_0/probe", "pool/probe"), *_attention("MAPHead_0", "pool")]
        table += _norm("MAPHead_0/LayerNorm_0", "pool/norm") + _mlp("MAPHead_0/MlpBlock_0", "pool/mlp")
    return table + (_dense("pre_logits", "rep") if model["rep_size"] else [])


def _mixer_links(depth: int) -> list[Link]:
    table = _dense("stem", "embed") + _norm("pre_head_layer_norm", "encoder/norm")
    for i in range(depth):
        theirs, ours = f"MixerBlock_{i}", f"encoder/block_{i}"
        table += _norm(f"{theirs}/LayerNorm_0", f"{ours}/norm1") + _norm(f"{theirs}/LayerNorm_1", f"{ours}/norm2")
        table += _mlp(f"{theirs}/token_mixing", f"{ours}/tokens") + _mlp(f"{theirs}/channel_mixing", f"{ours}/channels")
    return table


def _unit(theirs: str, ours: str, projected: bool) -> list[Link]:
    table = []
    for name in ("1", "2", "3") + (("_proj",) if projected else ()):
        table += [same(f"{theirs}/conv{name}/kernel", f"{ours}/conv{name}/kernel")]
        table += _norm(f"{theirs}/gn{name}", f"{ours}/norm{name}")
    return table


def _attention(theirs: str, ours: str) -> list[Link]:
    names = ("query", "key", "value", "out")
    return [x for n in names for x in _dense(f"{theirs}/MultiHeadDotProductAttention_0/{n}", f"{ours}/attn/{n}")]


def _mlp(theirs: str, ours: str) -> list[Link]:
    return _dense(f"{theirs}/Dense_0", f"{ours}/up") + _dense(f"{theirs}/Dense_1", f"{ours}/down")


def _dense(theirs: str, ours: str) -> list[Link]:
    return [same(f"{theirs}/{leaf}", f"{ours}/{leaf}") for leaf in ("kernel", "bias")]


def _norm(theirs: str, ours: str) -> list[Link]:
    return [same(f"{theirs}/{leaf}", f"{ours}/{leaf}") for leaf in ("scale", "bias")]
