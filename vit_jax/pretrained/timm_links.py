"""Which array of timm holds which of ours."""

from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained.links import Link, conv, same
from vit_jax.pretrained.torch_links import dense, from_heads, norm, split_dense, to_heads


def links(model: Mapping[str, Any], packed: bool = True) -> list[Link]:
    """The table of a complete spec; `packed`: a SwiGLU's gate and up are one array (SwiGLUPacked), not two (SwiGLU)."""
    return _mixer(model) if model["type"] == "mixer.Mixer" else _vit(model, packed)


def _vit(model: Mapping[str, Any], packed: bool) -> list[Link]:
    table = [conv("patch_embed.proj.weight", "embed/kernel")]
    singles = {
        "embed_bias": ("patch_embed.proj.bias", "embed/bias"),
        "class_token": ("cls_token", "cls"),
        "distilled": ("dist_token", "dist"),
        "registers": ("reg_token", "registers"),
    }
    table += [same(*names) for field, names in singles.items() if model[field]]
    if model["posemb"] == "learn":
        table.append(same("pos_embed", "posemb/table"))
    if model["stem"]:
        table += _resnet("patch_embed.backbone", model["stem"]["stages"])
    if model["pre_norm"]:
        table += norm("norm_pre", "pre_norm")
    for i in range(model["depth"]):
        table += _block(f"blocks.{i}", f"encoder/block_{i}", model, packed)
    table += norm("fc_norm", "norm") if model["norm_after_pool"] else norm("norm", "encoder/norm")
    if model["pool"] == "map":
        table += _pool(model["num_heads"])
    if model["rep_size"]:
        table += dense("pre_logits.fc", "rep")
    if model["num_classes"]:
        table += dense("head", "head")
        table += dense("head_dist", "head_dist") if model["distilled"] else []
    return table


def _block(theirs: str, ours: str, model: Mapping[str, Any], packed: bool) -> list[Link]:
    heads = model["num_heads"]
    table = norm(f"{theirs}.norm1", f"{ours}/norm1") + norm(f"{theirs}.norm2", f"{ours}/norm2")
    qkv = [f"{ours}/attn/{name}" for name in ("query", "key", "value")]
    table += to_heads(f"{theirs}.attn.qkv", qkv, heads, model["qkv_bias"])
    table += from_heads(f"{theirs}.attn.proj", f"{ours}/attn/out", heads)
    if model["qk_norm"]:
        table += norm(f"{theirs}.attn.q_norm", f"{ours}/attn/query_norm")
        table += norm(f"{theirs}.attn.k_norm", f"{ours}/attn/key_norm")
    if model["layer_scale"] is not None:
        table += [same(f"{theirs}.ls{j}.gamma", f"{ours}/layer_scale{j}/scale") for j in (1, 2)]
    if model["mlp"] != "swiglu":
        return table + _mlp(f"{theirs}.mlp", f"{ours}/mlp")
    table += dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    if packed:
        return table + split_dense(f"{theirs}.mlp.fc1", [f"{ours}/mlp/gate", f"{ours}/mlp/up"])
    return table + dense(f"{theirs}.mlp.fc1_g", f"{ours}/mlp/gate") + dense(f"{theirs}.mlp.fc1_x", f"{ours}/mlp/up")


def _mlp(theirs: str, ours: str) -> list[Link]:
    return dense(f"{theirs}.fc1", f"{ours}/up") + dense(f"{theirs}.fc2", f"{ours}/down")


def _pool(heads: int) -> list[Link]:
    return [
        same("attn_pool.latent", "pool/probe"),
        *to_heads("attn_pool.q", ["pool/attn/query"], heads),
        *to_heads("attn_pool.kv", ["pool/attn/key", "pool/attn/value"], heads),
        *from_heads("attn_pool.proj", "pool/attn/out", heads),
        *norm("attn_pool.norm", "pool/norm"),
        *_mlp("attn_pool.mlp", "pool/mlp"),
    ]


def _resnet(theirs: str, stages: tuple[int, ...]) -> list[Link]:
    root = f"{theirs}.stem" if stages else theirs  # without stages the backbone is the root itself
    table = [conv(f"{root}.conv.weight", "stem/root/kernel"), *norm(f"{root}.norm", "stem/root_norm")]
    for i, units in enumerate(stages):
        for j in range(units):
            unit, our = f"{theirs}.stages.{i}.blocks.{j}", f"stem/stage_{i}/unit_{j}"
            for k in (1, 2, 3):
                table += [conv(f"{unit}.conv{k}.weight", f"{our}/conv{k}/kernel")]
                table += norm(f"{unit}.norm{k}", f"{our}/norm{k}")
            if j == 0:  # the unit that changes the shape
                table += [conv(f"{unit}.downsample.conv.weight", f"{our}/conv_proj/kernel")]
                table += norm(f"{unit}.downsample.norm", f"{our}/norm_proj")
    return table


def _mixer(model: Mapping[str, Any]) -> list[Link]:
    table = [conv("stem.proj.weight", "embed/kernel"), same("stem.proj.bias", "embed/bias")]
    for i in range(model["depth"]):
        theirs, ours = f"blocks.{i}", f"encoder/block_{i}"
        table += norm(f"{theirs}.norm1", f"{ours}/norm1") + norm(f"{theirs}.norm2", f"{ours}/norm2")
        table += _mlp(f"{theirs}.mlp_tokens", f"{ours}/tokens") + _mlp(f"{theirs}.mlp_channels", f"{ours}/channels")
    table += norm("norm", "encoder/norm")
    return table + (dense("head", "head") if model["num_classes"] else [])
