"""What timm's config.json says of a model, and what timm's architecture names imply where it says nothing."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, get_args

from vit_jax.config.kinds import cast, fits, hint_name
from vit_jax.pretrained.preprocessing import Method, Preprocessing
from vit_jax.types import UserError

# What an architecture of timm has otherwise than exact GELU, LayerNorms with eps 1e-6 and heads as in HEADS.
_BY_NAME: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"_clip_", {"norm_eps": 1e-5}),
    (r"quickgelu", {"act_layer": "quick_gelu"}),
    (r"giant_.*(dinov2|tipsv2)", {"act_layer": "silu"}),
    (r"(base_patch32|giantopt_patch16|so400m_patch16)_siglip", {"act_layer": "gelu_tanh"}),
    (r"large_patch16_siglip_(gap_)?512", {"act_layer": "gelu_tanh"}),
    (r"giantopt_|^vit_base_patch16_gap_", {"num_heads": 16}),
    (r"^test_vit2?$", {"num_heads": 2}),
    (r"^test_vit3$", {"num_heads": 3, "pool_include_prefix": True}),
)
# Heads by width, where they are not 64 wide.
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a model besides its arrays; None where nothing is.

    tag: which weights of that architecture. image_size: (height, width). The others are timm's arguments of these names.
    """

    architecture: str | None
    tag: str | None
    act_layer: str | None
    norm_eps: float
    num_heads: int | None
    global_pool: str | None
    no_embed_class: bool | None
    init_values: float | None
    pos_embed: str
    image_size: tuple[int, int] | None


def take(table: Mapping[str, Any], key: str, hint: Any, default: Any, origin: str) -> Any:
    """A value of a config.json as a kind, or the default where it is absent or null; raises UserError for another kind."""
    value = table.get(key)
    if value is None:
        return default
    if not fits(value, hint):
        raise UserError(f"{origin}: its config.json has {key}={value!r:.80}; expected {hint_name(hint)}.")
    return cast(value, hint)


def pretrained_cfg(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The part about images and classes; older files have it at the top."""
    return take(config, "pretrained_cfg", dict, dict(config), origin)


def facts(config: Mapping[str, Any], origin: str) -> Facts:
    """model_args win over what the architecture's name implies."""
    name = take(config, "architecture", str, None, origin)
    pretrained = pretrained_cfg(config, origin)
    args: dict[str, Any] = {}
    for pattern, implied in _BY_NAME:
        if name and re.search(pattern, name):
            args |= implied
    args["global_pool"] = pretrained.get("global_pool") or config.get("global_pool")
    given = take(config, "model_args", dict, {}, origin)
    args |= {key: value for key, value in given.items() if value is not None}
    if take(args, "pool_include_prefix", bool, False, origin):
        raise UserError(f"{origin} pools its prefix tokens too (pool_include_prefix=True), which ours does not.")
    if norm_layer := take(given, "norm_layer", str, "", origin):
        if norm_layer.replace("_", "").lower() not in ("layernorm", "layernormfp32"):
            raise UserError(f"{origin} has norm_layer={norm_layer!r}; only 'layernorm' is understood.")
        args["norm_eps"] = 1e-6
    shape = take(pretrained, "input_size", tuple[int, int, int], None, origin)
    size = take(args, "img_size", int | tuple[int, int], shape and shape[1:], origin)
    size = (size, size) if isinstance(size, int) else size
    if size and min(size) < 1:
        raise UserError(f"{origin}: its config.json says images of {size} pixels.")
    return Facts(
        architecture=name,
        tag=take(pretrained, "tag", str, None, origin),
        act_layer=take(args, "act_layer", str, None, origin),
        norm_eps=args.get("norm_eps", 1e-6),
        num_heads=take(args, "num_heads", int, None, origin),
        global_pool=take(args, "global_pool", str, None, origin),
        no_embed_class=take(args, "no_embed_class", bool, None, origin),
        init_values=take(args, "init_values", float, None, origin),
        pos_embed=take(args, "pos_embed", str, "learn", origin),
        image_size=size,
    )


def class_names(config: Mapping[str, Any], classes: int, origin: str) -> tuple[str, ...] | None:
    """The names of the classes in order, where the config has all of them."""
    names: Any = config.get("label_names") or pretrained_cfg(config, origin).get("label_names")
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(classes)]
    return tuple(names) if classes and fits(names, tuple[str, ...]) and len(names) == classes else None


def preprocessing(
    config: Mapping[str, Any], size: tuple[int, int], channels: int, origin: str
) -> tuple[Preprocessing, list[str]]:
    """How images are prepared for evaluation, timm's defaults where the config says nothing, and notes on what is not exact."""
    pretrained = pretrained_cfg(config, origin)
    crop = take(pretrained, "crop_pct", float, 0.875, origin)
    if not 0 < crop <= 1:
        raise UserError(f"{origin}: its config.json has crop_pct={crop}; expected a share of the image in (0, 1].")
    mode: Any = pretrained.get("crop_mode") or "center"
    method: Any = pretrained.get("interpolation") or "bicubic"
    notes = []
    default = (MEAN, STD) if channels == 3 else ((0.5,), (0.5,))
    mean = take(pretrained, "mean", tuple[float, ...], default[0], origin)
    std = take(pretrained, "std", tuple[float, ...], default[1], origin)
    if not pretrained.get("mean") or not pretrained.get("std"):
        notes.append(
            f"Nothing says how its images are normalised: assumed timm's default, mean={mean}, std={std} and "
            f"crop_pct={crop:g}."
        )
    if method not in get_args(Method):
        notes.append(f"Its images are resized with interpolation={method!r}; bicubic is used.")
        method = "bicubic"
    if mode == "center":
        short_side = math.floor(min(size) / crop)
        if size[0] != size[1]:
            notes.append("timm resizes for an oblong crop in a way of its own; the shorter side is resized instead.")
    else:
        short_side = None
        if mode != "squash" or crop != 1:
            notes.append(
                f"Its images are cut with crop_mode={mode!r} and crop_pct={crop:g}; the whole image is resized."
            )
    mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
    if not 0 < channels == len(mean) == len(std) or min(std) <= 0:
        raise UserError(
            f"{origin} has {channels} channels, but mean={mean} and std={std}; expected a number for each, std above 0."
        )
    return Preprocessing(size, short_side, method, mean, std), notes
