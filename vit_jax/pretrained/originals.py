"""Rename arrays of the original DINO, DINOv2, DINOv3, MAE, BEiT and I-JEPA files, which almost have timm's names."""

import re

import numpy as np

from vit_jax.pretrained.pretrained import FlatParams

_RENAMED = (
    (r"^(register|storage)_tokens$", "reg_token"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's chunks of blocks for FSDP
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
)
# Buffers, which are recomputed.
_BUFFERS = re.compile(r".*relative_position_index$|.*rope(_embed)?\.|.*\.(bias_mask|periods)$|.*rope.*freqs_(cos|sin)$")


def as_timms(arrays: FlatParams) -> FlatParams:
    """Return the arrays with timm's names; arrays that already have them are unchanged.

    DINOv2's registers have no positions, so the class token's is added to it; DINOv3's key bias is masked out.
    """
    if "patch_embed.proj.weight" not in arrays:
        return arrays
    is_dinov3 = "storage_tokens" in arrays
    renamed: FlatParams = {}
    for name, array in arrays.items():
        if _BUFFERS.match(name):
            continue
        for theirs, timms in _RENAMED:
            name = re.sub(theirs, timms, name)
        if is_dinov3:
            name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        if is_dinov3 and name.endswith("attn.qkv.bias"):
            query, _, value = np.split(array, 3)
            renamed |= {name.replace("qkv.bias", f"{key}_bias"): x for key, x in (("q", query), ("v", value))}
        else:
            renamed[name] = array.reshape(1, 1, -1) if name == "mask_token" else array
    if "register_tokens" in arrays and "pos_embed" in renamed:
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed
