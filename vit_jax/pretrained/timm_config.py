"""Read timm's config.json and the defaults implied by architecture names, and write it for an exported model."""

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from vit_jax.config.hints import fits
from vit_jax.pretrained import specs
from vit_jax.pretrained.pretrained import Interpolation, Preprocessing
from vit_jax.pretrained.tensors import config_value
from vit_jax.types import UserError

# Architectures that differ from exact GELU, LayerNorm epsilon 1e-6 or the heads in HEADS.
_BY_NAME: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"_clip_", {"norm_eps": 1e-5}),
    (r"quickgelu", {"act_layer": "quick_gelu"}),
    (r"giant_.*(dinov2|tipsv2)", {"act_layer": "silu"}),
    (r"(base_patch32|giantopt_patch16|so400m_patch16)_siglip|^naflexvit_.*_siglip", {"act_layer": "gelu_tanh"}),
    (r"large_patch16_siglip_(gap_)?512", {"act_layer": "gelu_tanh"}),
    (r"giantopt_|^vit_base_patch16_gap_", {"num_heads": 16}),
    (r"^test_vit2?$", {"num_heads": 2}),
    (r"^test_vit3$", {"num_heads": 3, "pool_include_prefix": True}),
)
# Number of heads by model width, if the head width is not 64.
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16, 4096: 32}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLS = {"tok": "token", "gap": "avg", "map": "map"}


@dataclasses.dataclass(frozen=True)
class TimmArgs:
    """The values stated by config.json and the architecture's name, None if they are not stated.

    `tag` names the weights of the architecture, image_size is (height, width); the other fields are arguments of timm's
    models.
    """

    architecture: str | None
    tag: str | None
    image_size: tuple[int, int] | None
    act_layer: str | None = None
    norm_eps: float = 1e-6
    num_heads: int | None = None
    global_pool: str | None = None
    no_embed_class: bool | None = None
    init_values: float | None = None
    pos_embed: str = "learn"


def read_args(config: Mapping[str, Any], origin: str) -> TimmArgs:
    """Read config.json; model_args take precedence over the architecture's name."""
    name = config_value(config, "architecture", str, None, origin)
    pretrained = _pretrained_cfg(config, origin)
    args: dict[str, Any] = {}
    for pattern, implied in _BY_NAME:
        if name and re.search(pattern, name):
            args |= implied
    args["global_pool"] = pretrained.get("global_pool") or config.get("global_pool")
    given = config_value(config, "model_args", dict, {}, origin)
    args |= {key: value for key, value in given.items() if value is not None}
    if config_value(args, "pool_include_prefix", bool, False, origin):
        raise UserError(f"{origin} has pool_include_prefix=True, which is not supported.")
    if norm_layer := config_value(given, "norm_layer", str, "", origin):
        if norm_layer.replace("_", "").lower() not in ("layernorm", "layernormfp32"):
            raise UserError(f"{origin} has norm_layer={norm_layer!r}; expected 'layernorm'.")
        args["norm_eps"] = 1e-6
    shape = config_value(pretrained, "input_size", tuple[int, int, int], None, origin)
    size = config_value(args, "img_size", int | tuple[int, int], shape and shape[1:], origin)
    size = size and specs.pair(size)
    if size and min(size) < 1:
        raise UserError(f"{origin}: its config.json has an image size of {size}; expected at least 1 pixel.")
    tag = config_value(pretrained, "tag", str, None, origin)
    hints = typing.get_type_hints(TimmArgs)
    given = {key: value for key, value in args.items() if key in hints and value is not None}
    return TimmArgs(name, tag, size, **{key: config_value(given, key, hints[key], None, origin) for key in given})


def _pretrained_cfg(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the part about images and classes, which older files have at the top level."""
    return config_value(config, "pretrained_cfg", dict, dict(config), origin)


def read_class_names(config: Mapping[str, Any], classes: int, origin: str) -> tuple[str, ...] | None:
    """Return the names of the classes in order, or None if the config lacks any of them."""
    names: Any = config.get("label_names") or _pretrained_cfg(config, origin).get("label_names")
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(classes)]
    return tuple(names) if classes and fits(names, tuple[str, ...]) and len(names) == classes else None


def read_license(config: Mapping[str, Any]) -> list[str]:
    """Return a note on the license of the weights if the config states it."""
    stated = config.get("license") or config.get("pretrained_cfg", {}).get("license")
    return [f"Its source states the license {stated!r} for the weights."] if isinstance(stated, str) and stated else []


def read_preprocessing(
    config: Mapping[str, Any], size: tuple[int, int], channels: int, origin: str
) -> tuple[Preprocessing, list[str]]:
    """Return the evaluation preprocessing, with timm's defaults for missing values, and notes on differences."""
    pretrained = _pretrained_cfg(config, origin)
    crop = config_value(pretrained, "crop_pct", float, 0.875, origin)
    if not 0 < crop <= 1:
        raise UserError(f"{origin}: its config.json has crop_pct={crop}; expected a fraction in (0, 1].")
    mode: Any = pretrained.get("crop_mode") or "center"
    method: Any = pretrained.get("interpolation") or "bicubic"
    notes = []
    default = (MEAN, STD) if channels == 3 else ((0.5,), (0.5,))
    mean = config_value(pretrained, "mean", tuple[float, ...], default[0], origin)
    std = config_value(pretrained, "std", tuple[float, ...], default[1], origin)
    if not pretrained.get("mean") or not pretrained.get("std"):
        notes.append(
            f"Its source does not state the normalization: assumed timm's defaults, mean={mean}, std={std} and "
            f"crop_pct={crop:g}."
        )
    if method not in typing.get_args(Interpolation):
        known = ", ".join(typing.get_args(Interpolation))
        raise UserError(f"{origin}: its config.json has interpolation={method!r}; expected one of {known}.")
    if mode not in ("center", "squash"):
        raise UserError(f"{origin}: its config.json has crop_mode={mode!r}; expected 'center' or 'squash'.")
    covered = (math.floor(size[0] / crop), math.floor(size[1] / crop))
    resized = covered[0] if mode == "center" and covered[0] == covered[1] else covered
    mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
    if not 0 < channels == len(mean) == len(std) or min(std) <= 0:
        raise UserError(
            f"{origin} has {channels} channels, but mean={mean} and std={std}; expected one number per channel, std above 0."
        )
    return Preprocessing(size, resized, method, mean, std, mode == "center", "torchvision"), notes


def make_config(
    architecture: str,
    model: Mapping[str, Any],
    arguments: Mapping[str, Any],
    preprocessing: Preprocessing | None,
    size: tuple[int, int],
    channels: int,
    class_names: tuple[str, ...] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the config.json of a complete spec, to be built as `architecture` with `arguments`, and notes."""
    is_mixer = model["type"] == "mixer.Mixer"
    images, notes = image_config(preprocessing, size)
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": model["num_classes"],
        "num_features": model["width"],
        "global_pool": "avg" if is_mixer else POOLS[model["pool"]],
        "model_args": {"img_size": list(size), "in_chans": channels} | dict(arguments),
        "pretrained_cfg": {
            "input_size": [channels, *size],
            "fixed_input_size": True,
            "num_classes": model["num_classes"],
            "classifier": ["head", "head_dist"] if model.get("distilled") else "head",
            "first_conv": _first_conv(model),
            **images,
        },
    }
    if class_names is not None and len(class_names) == model["num_classes"]:
        config["label_names"] = list(class_names)
    return config, notes


def vit_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that make timm's VisionTransformer match the complete spec, except image sizes."""
    is_gated = model["mlp"] == "swiglu"
    return {
        "patch_size": list(specs.pair(model["patch_size"])),
        "embed_dim": model["width"],
        "depth": model["depth"],
        "num_heads": model["num_heads"],
        "mlp_ratio": ratio(model["mlp_dim"] * (2 if is_gated else 1), model["width"]),
        "act_layer": "silu" if is_gated else model["mlp"],
        "class_token": model["class_token"],
        "reg_tokens": model["registers"],
        "global_pool": POOLS[model["pool"]],
        "fc_norm": model["norm_after_pool"],
        "pos_embed": "none" if model["posemb"] == "none" else "learn",
        "no_embed_class": not model["posemb_prefix"],
        "pre_norm": model["pre_norm"],
        "qk_norm": model["qk_norm"],
        "qkv_bias": model["qkv_bias"],
        "init_values": 0.0 if model["layer_scale"] is None else model["layer_scale"] or 1e-5,
    }


def mixer_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that make an architecture of the right width and depth match the Mixer of a complete spec."""
    return {"mlp_ratio": [ratio(model[f"{part}_mlp_dim"], model["width"]) for part in ("tokens", "channels")]}


def ratio(hidden: int, width: int) -> float:
    """Return a ratio for which timm's int(width * ratio) equals `hidden`."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _first_conv(model: Mapping[str, Any]) -> str:
    if model["type"] == "mixer.Mixer":
        return "stem.proj"
    if not model["stem"]:
        return "patch_embed.proj"
    return "patch_embed.backbone.stem.conv" if model["stem"]["stages"] else "patch_embed.backbone.conv"


def image_config(preprocessing: Preprocessing | None, size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of pretrained_cfg for a preprocessing, and notes on differences."""
    if preprocessing is None:
        return {}, ["Its config.json does not describe the preprocessing, which timm cannot express."]
    images: dict[str, Any] = {
        "interpolation": preprocessing.method,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    mode = "center" if preprocessing.keep_ratio else "squash"
    resized = preprocessing.resized
    notes = []
    if isinstance(resized, int) and size[0] != size[1]:
        notes.append("timm resizes differently for a crop that is not square.")
        crop = _crop_pct((min(size),), (resized,))
    else:
        crop = _crop_pct(size, specs.pair(resized) if resized else size)
    if resized is None or crop is None:
        notes.append(f"timm cannot express the preprocessing {preprocessing.spec!r}, and resizes to {size} instead.")
        return images | {"crop_mode": "squash", "crop_pct": 1.0}, notes
    if preprocessing.rule != "torchvision" and resized != size:
        notes.append(
            f"timm rounds sides and margins as torchvision does, not as {preprocessing.rule}: its images may be shifted by a "
            "pixel."
        )
    return images | {"crop_mode": mode, "crop_pct": crop}, notes


def _crop_pct(size: tuple[int, ...], resized: tuple[int, ...]) -> float | None:
    """Return a fraction for which timm's floor(side / fraction) gives `resized`, or None if there is none."""
    candidates = [side / (wanted + more) for side, wanted in zip(size, resized, strict=True) for more in (0, 0.5)]
    exact = (
        crop
        for crop in candidates
        if all(math.floor(side / crop) == to for side, to in zip(size, resized, strict=True))
    )
    return next(exact, None)


def differences(architecture: str, model: Mapping[str, Any]) -> list[str]:
    """Describe the fields for which timm's architecture has another value."""
    theirs: dict[str, Any] = {"norm_eps": 1e-5 if "_clip_" in architecture or "_dinov3" in architecture else 1e-6}
    if model["type"] == "mixer.Mixer":
        theirs["mlp"] = "gelu"
    ours: dict[str, Any] = {field: model[field] for field in theirs}
    if model.get("stem"):
        stem = {"norm_eps": 1e-5, "weight_norm": "var", "weight_eps": 1e-8}
        theirs |= {f"stem.{field}": value for field, value in stem.items()}
        ours |= {f"stem.{field}": model["stem"][field] for field in stem}
    return [
        f"timm computes with {field}={theirs[field]!r}, not {ours[field]!r}: its logits will differ slightly."
        for field in theirs
        if theirs[field] != ours[field]
    ]
