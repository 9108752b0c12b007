"""Models of ours as a folder that timm.create_model("local-dir:FOLDER", pretrained=True) builds."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.pretrained import folder as folders
from vit_jax.pretrained import specs
from vit_jax.pretrained.links import Flat, to_theirs
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.timm_links import links
from vit_jax.types import UserError

_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
_MIXERS = {  # timm's Mixers take no other width, depth and patch size
    (width, depth, (patch, patch)): f"mixer_{size}{patch}_224"
    for size, width, depth in (("s", 512, 8), ("b", 768, 12), ("l", 1024, 24))
    for patch in (16, 32)
}
_POOLS = {"tok": "token", "gap": "avg", "map": "map"}


def write(
    folder: Path,
    model: Mapping[str, Any],
    params: Flat,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> list[str]:
    """Writes config.json and model.safetensors into a new folder, and gives notes on what timm computes otherwise.

    Raises UserError, which names the field, for a model that timm cannot build from a config.json.
    """
    folders.check_new(folder)
    model = specs.complete(model, "timm")
    is_mixer = model["type"] == "mixer.Mixer"
    architecture = _mixer(model) if is_mixer else _vit(model)
    notes = _inexact(architecture, model)
    size = preprocessing.size if preprocessing else specs.image_size(model, params, "timm")
    channels = params["stem/root/kernel" if model.get("stem") else "embed/kernel"].shape[2]
    if not is_mixer:
        model, params = specs.explicit(model, params, size)
    images, more = _images(preprocessing, size)
    pool = "avg" if is_mixer else _POOLS[model["pool"]]
    classifier = ["head", "head_dist"] if model.get("distilled") else "head"
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": model["num_classes"],
        "num_features": model["width"],
        "global_pool": pool,
        "model_args": {"img_size": list(size), "in_chans": channels} | (_mixer_args if is_mixer else _vit_args)(model),
        "pretrained_cfg": {
            **{"input_size": [channels, *size], "fixed_input_size": True, "num_classes": model["num_classes"]},
            **{"classifier": classifier, "first_conv": _first_conv(model), **images},
        },
    }
    if class_names is not None and len(class_names) == model["num_classes"]:
        config["label_names"] = list(class_names)
    folders.write(folder, to_theirs(links(model), params), {"config.json": config})
    return notes + more


def _vit(model: Mapping[str, Any]) -> str:
    """The architecture of timm that comes nearest, to be changed by arguments; UserError for what no argument says."""
    mixed = model["distilled"] and (model["registers"] or not model["posemb_prefix"] or model["norm_after_pool"])
    refused = {
        "rep_size": model["rep_size"],
        "stride": model["stride"] and specs.pair(model["stride"]) != specs.pair(model["patch_size"]),
        "padding": model["padding"] != "valid",
        "posemb": model["posemb"] not in ("learn", "sincos2d", *(() if model["distilled"] else ("none",))),
        "embed_bias": model["embed_bias"] and model["pre_norm"],
        "mlp": model["mlp"] == "swiglu" and (model["pool"] == "map" or model["stem"] or model["distilled"]),
        "distilled": mixed or (model["distilled"] and model["stem"]),
        "stem": model["stem"] and (tuple(model["stem"]["stages"]) not in _HYBRIDS or model["stem"]["width"] != 64),
        "norm_eps": model["norm_eps"] > 1e-5,
    }
    for field, is_refused in refused.items():
        if is_refused:
            raise UserError(
                f"model.{field}={model[field]!r} cannot be written for timm, which builds no such network from a config.json"
                f"{' together with the other fields' if field in ('mlp', 'distilled', 'embed_bias') else ''}; keep it as ours."
            )
    if model["stem"]:
        return _HYBRIDS[tuple(model["stem"]["stages"])]
    if model["distilled"]:
        return "deit_base_distilled_patch16_224"
    if model["mlp"] == "swiglu":  # no argument in JSON says it, so that it must be the architecture's own
        return "vit_giant_patch14_dinov2"
    # Nor does one say norm_eps: CLIP's architectures have 1e-5, the others 1e-6.
    return "vit_base_patch16_clip_224" if model["norm_eps"] > 3e-6 else "vit_base_patch16_224"


def _mixer(model: Mapping[str, Any]) -> str:
    shape = (model["width"], model["depth"], specs.pair(model["patch_size"]))
    if shape not in _MIXERS:
        raise UserError(
            f"model.width={shape[0]}, depth={shape[1]}, patch_size={model['patch_size']} cannot be written for timm, which "
            "builds Mixers of the sizes S, B and L with patches of 16 and 32 alone; keep it as ours."
        )
    return _MIXERS[shape]


def _inexact(architecture: str, model: Mapping[str, Any]) -> list[str]:
    has: dict[str, Any] = {"norm_eps": 1e-5 if "_clip_" in architecture else 1e-6}
    if model["type"] == "mixer.Mixer":
        has["mlp"] = "gelu"
    found: dict[str, Any] = {field: model[field] for field in has}
    if model.get("stem"):
        stem = {"norm_eps": 1e-5, "weight_norm": "var", "weight_eps": 1e-8}
        has |= {f"stem.{field}": value for field, value in stem.items()}
        found |= {f"stem.{field}": model["stem"][field] for field in stem}
    return [
        f"timm computes with {field}={has[field]!r}, not {found[field]!r}: its logits will differ slightly."
        for field in has
        if has[field] != found[field]
    ]


def _vit_args(model: Mapping[str, Any]) -> dict[str, Any]:
    is_gated = model["mlp"] == "swiglu"
    return {
        "patch_size": list(specs.pair(model["patch_size"])),
        "embed_dim": model["width"],
        "depth": model["depth"],
        "num_heads": model["num_heads"],
        "mlp_ratio": _ratio(model["mlp_dim"] * (2 if is_gated else 1), model["width"]),
        "act_layer": "silu" if is_gated else model["mlp"],
        "class_token": model["class_token"],
        "reg_tokens": model["registers"],
        "global_pool": _POOLS[model["pool"]],
        "fc_norm": model["norm_after_pool"],
        "pos_embed": "none" if model["posemb"] == "none" else "learn",
        "no_embed_class": not model["posemb_prefix"],
        "pre_norm": model["pre_norm"],
        "qk_norm": model["qk_norm"],
        "qkv_bias": model["qkv_bias"],
        "init_values": 0.0 if model["layer_scale"] is None else model["layer_scale"] or 1e-5,
    }


def _mixer_args(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"mlp_ratio": [_ratio(model[f"{part}_mlp_dim"], model["width"]) for part in ("tokens", "channels")]}


def _ratio(hidden: int, width: int) -> float:
    """A ratio from which timm computes int(width * ratio) = hidden."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _first_conv(model: Mapping[str, Any]) -> str:
    if model["type"] == "mixer.Mixer":
        return "stem.proj"
    if not model["stem"]:
        return "patch_embed.proj"
    return "patch_embed.backbone.stem.conv" if model["stem"]["stages"] else "patch_embed.backbone.conv"


def _images(preprocessing: Preprocessing | None, size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    if preprocessing is None:
        return {}, [
            "Its config.json says nothing of how images are prepared, as timm cannot say what this model takes."
        ]
    images: dict[str, Any] = {
        "interpolation": preprocessing.method,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    short = preprocessing.short_side
    if short is None:
        return images | {"crop_mode": "squash", "crop_pct": 1.0}, []
    crop = min(size) / short
    if math.floor(min(size) / crop) != short:
        crop = min(size) / (short + 0.5)
    notes = ["timm resizes for an oblong crop in a way of its own."] if size[0] != size[1] else []
    return images | {"crop_mode": "center", "crop_pct": crop}, notes
