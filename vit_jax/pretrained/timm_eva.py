"""Convert timm's Eva and Beit: EVA-02, DINOv3 and BEiT, whose keys have no bias and whose attention uses positions."""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained import specs, timm_config
from vit_jax.pretrained.links import Link, conv, dense, from_heads, norm, same, shape_of, to_heads
from vit_jax.pretrained.pretrained import FlatParams
from vit_jax.pretrained.tensors import config_value
from vit_jax.pretrained.timm_config import TimmArgs
from vit_jax.types import UserError

_FIRST = "blocks.0."
_TABLE = "relative_position_bias_table"
# Rotary positions of architectures, and the arguments of timm's models that set them.
_EVA02 = {"type": "Axial", "base": 10_000.0, "coordinates": "index", "reference": 16, "pairs": "neighbours"}
_DINOV3 = {"type": "Axial", "base": 100.0}


def matches(arrays: FlatParams, args: TimmArgs) -> bool:
    """Return whether arrays without timm's prefix belong to a BEiT, EVA or DINOv3."""
    name = args.architecture or ""
    if re.search("^vit_.*(_rope_|_pe_|_lingbot|_rpn_|_eupe)", name):
        return False
    own = {f"{_FIRST}attn.{key}" for key in ("q_bias", "q_proj.weight", _TABLE)}
    is_dinov3 = f"{_FIRST}gamma_1" in arrays and not {"pos_embed", f"{_FIRST}attn.qkv.bias"} & set(arrays)
    return bool(own & set(arrays)) or is_dinov3 or bool(re.search("dinov3|^eva02_|^eva_giant|^beit(v2)?_", name))


def read_spec(
    arrays: FlatParams, config: Mapping[str, Any], args: TimmArgs, origin: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the spec of a network, without its defaults, and notes."""
    given = config_value(config, "model_args", dict, {}, origin)
    unknown = [key for key in ("rope_grid_offset", "num_kv_heads", "gated_attn") if given.get(key)]
    unknown += [key for key, value in (("rope_type", "mrope"), ("attn_type", "rope")) if given.get(key) == value]
    if unknown:
        raise UserError(f"{origin} has {unknown[0]}={given[unknown[0]]!r}, which is not supported.")
    width, _, *patch = shape_of(arrays, "patch_embed.proj.weight", 4, origin)
    hidden = shape_of(arrays, f"{_FIRST}mlp.fc2.weight", 2, origin)[1]
    gated = f"{_FIRST}mlp.fc1_g.weight" in arrays
    gated = gated or shape_of(arrays, f"{_FIRST}mlp.fc1.weight", 2, origin)[0] == 2 * hidden
    rope = _rope(arrays, given, args, gated, origin)
    is_dinov3 = rope is not None and rope.get("coordinates", "centred") == "centred"
    fc_norm = "fc_norm.weight" in arrays
    pool = args.global_pool or ("avg" if fc_norm or is_dinov3 or "cls_token" not in arrays else "token")
    pools = {theirs: ours for ours, theirs in timm_config.POOLS.items() if ours != "map"}
    if pool not in pools:
        raise UserError(f"{origin} has global_pool={pool!r}; expected one of {', '.join(pools)}.")
    by_width = timm_config.HEADS | ({1280: 20} if is_dinov3 else {})
    tables = [x.shape[1] for name, x in arrays.items() if name.endswith(_TABLE) and x.ndim == 2]
    heads = tables[0] if tables else args.num_heads or by_width.get(width, max(width // 64, 1))
    if width % heads:
        raise UserError(
            f"{origin} has width {width}, which is not divisible by {heads} heads; set num_heads in its config.json."
        )
    model = {
        "type": "vit.ViT",
        "num_classes": shape_of(arrays, "head.weight", 2, origin)[0] if "head.weight" in arrays else 0,
        "width": width,
        "depth": 1 + max(int(match[1]) for name in arrays if (match := re.match(r"blocks\.(\d+)\.", name))),
        "mlp_dim": hidden,
        "num_heads": heads,
        "patch_size": specs.int_or_pair(*patch),
        "pool": pools[pool],
        "class_token": "cls_token" in arrays,
        "registers": shape_of(arrays, "reg_token", 3, origin)[1] if "reg_token" in arrays else 0,
        "posemb": "learn" if "pos_embed" in arrays else "none",
        "posemb_prefix": not args.no_embed_class,
        "mask_token": "mask_token" in arrays,
        "rope": rope,
        "relative_bias": "shared"
        if f"rel_pos_bias.{_TABLE}" in arrays
        else "blocks"
        if f"{_FIRST}attn.{_TABLE}" in arrays
        else "none",
        "post_norm": given.get("use_post_norm") or "_enormous_" in (args.architecture or ""),
        "attn_norm": f"{_FIRST}attn.norm.weight" in arrays,
        "mlp_norm": f"{_FIRST}mlp.norm.weight" in arrays,
        "mlp": "swiglu" if gated else "gelu",
        "norm_eps": 1e-5 if is_dinov3 else 1e-6,
        "norm_after_pool": fc_norm,
        "pre_norm": "norm_pre.weight" in arrays,
        "embed_bias": "patch_embed.proj.bias" in arrays,
        "qkv_bias": "qv" if {f"{_FIRST}attn.q_bias", f"{_FIRST}attn.q_proj.bias"} & set(arrays) else False,
        "layer_scale": args.init_values or 1e-5 if f"{_FIRST}gamma_1" in arrays else None,
    }
    if args.architecture:
        return model, []
    turned = f"rotary positions as {'DINOv3' if is_dinov3 else 'EVA-02'}" if rope else "no rotary positions"
    return model, [f"It has no config.json: assumed num_heads={heads}, pool={model['pool']!r} and {turned}."]


def _rope(
    arrays: FlatParams, given: Mapping[str, Any], args: TimmArgs, gated: bool, origin: str
) -> dict[str, Any] | None:
    """Return the rotary positions, which have no arrays, by the architecture's name, or the typical ones without it."""
    name = args.architecture or ""
    if (
        f"{_FIRST}attn.{_TABLE}" in arrays
        or f"rel_pos_bias.{_TABLE}" in arrays
        or name.startswith(("beit_", "beitv2_"))
    ):
        return None
    default = None
    if "dinov3" in name or (not name and "pos_embed" not in arrays):
        default = _DINOV3
    elif (name.startswith("eva02_") and "_enormous_" not in name) or (not name and gated):
        default = _EVA02
    if given.get("use_rot_pos_emb") is False:
        return None
    if default is None:
        return None
    rope = dict(default)
    changes: dict[str, tuple[str, Any]] = {"base": ("rope_temperature", float)}
    changes |= {key: (f"rope_{key}_coords", float) for key in ("shift", "jitter", "rescale")}
    if default is _EVA02:
        changes["reference"] = ("ref_feat_shape", int | tuple[int, int])
    for ours, (theirs, hint) in changes.items():
        value = config_value(given, theirs, hint, None, origin)
        if value is not None:
            rope[ours] = specs.int_or_pair(*specs.pair(value)) if ours == "reference" else value
    return rope


def grid_side(arrays: FlatParams) -> int | None:
    """Return the number of rows of the square grid of the relative biases, or None if there are none."""
    table = next((array for name, array in arrays.items() if name.endswith(_TABLE)), None)
    offsets = specs.square_side(len(table) - 3) if table is not None else None
    return (offsets + 1) // 2 if offsets else None


def links(model: Mapping[str, Any], fused: bool, packed: bool) -> list[Link]:
    """Return the name table of a complete spec.

    fused: queries, keys and values are one array; packed: SwiGLU's gate and up projections are one array.
    """
    table = [conv("patch_embed.proj.weight", "embed/kernel")]
    optional = {
        "embed_bias": ("patch_embed.proj.bias", "embed/bias"),
        "class_token": ("cls_token", "cls"),
        "registers": ("reg_token", "registers"),
        "mask_token": ("mask_token", "mask_token"),
    }
    table += [same(*names) for field, names in optional.items() if model[field]]
    if model["posemb"] == "learn":
        table.append(same("pos_embed", "posemb/table"))
    if model["relative_bias"] == "shared":
        table.append(same(f"rel_pos_bias.{_TABLE}", "encoder/relative_bias"))
    table += norm("norm_pre", "pre_norm") if model["pre_norm"] else []
    for i in range(model["depth"]):
        table += _block_links(f"blocks.{i}", f"encoder/block_{i}", model, fused, packed)
    table += norm("fc_norm", "norm") if model["norm_after_pool"] else norm("norm", "encoder/norm")
    return table + (dense("head", "head") if model["num_classes"] else [])


def _block_links(theirs: str, ours: str, model: Mapping[str, Any], fused: bool, packed: bool) -> list[Link]:
    heads, names = model["num_heads"], ("query", "key", "value")
    table = norm(f"{theirs}.norm1", f"{ours}/norm1") + norm(f"{theirs}.norm2", f"{ours}/norm2")
    if fused:
        table += to_heads(f"{theirs}.attn.qkv", [f"{ours}/attn/{name}" for name in names], heads, bias=False)
        for name in names:
            if specs.has_bias(model, name):
                bias = (f"{theirs}.attn.{name[0]}_bias", (f"{ours}/attn/{name}/bias",))
                table.append(Link(*bias, "(n k h) -> n k h", {"k": heads}))
    else:
        for name in names:
            has_bias = specs.has_bias(model, name)
            table += to_heads(f"{theirs}.attn.{name[0]}_proj", [f"{ours}/attn/{name}"], heads, has_bias)
    table += from_heads(f"{theirs}.attn.proj", f"{ours}/attn/out", heads)
    table += norm(f"{theirs}.attn.norm", f"{ours}/attn/norm") if model["attn_norm"] else []
    table += norm(f"{theirs}.mlp.norm", f"{ours}/mlp/norm") if model["mlp_norm"] else []
    if model["relative_bias"] == "blocks":
        table.append(same(f"{theirs}.attn.{_TABLE}", f"{ours}/attn/relative_bias"))
    if model["layer_scale"] is not None:
        table += [same(f"{theirs}.gamma_{j}", f"{ours}/layer_scale{j}/scale") for j in (1, 2)]
    table += dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    if model["mlp"] != "swiglu":
        return table + dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
    if packed:
        return table + dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/gate", f"{ours}/mlp/up")
    return table + dense(f"{theirs}.mlp.fc1_g", f"{ours}/mlp/gate") + dense(f"{theirs}.mlp.fc1_x", f"{ours}/mlp/up")


# Writing.


def is_needed(model: Mapping[str, Any]) -> bool:
    """Return whether a complete spec has features that timm's VisionTransformer lacks."""
    fields = ("rope", "post_norm", "attn_norm", "mlp_norm")
    return any(model[field] for field in fields) or model["relative_bias"] != "none" or model["qkv_bias"] == "qv"


def architecture(model: Mapping[str, Any]) -> str:
    """Return the architecture to configure by arguments; raises UserError for a field that no argument sets."""
    rope, biases = model["rope"] or {}, model["relative_bias"] != "none"
    is_dinov3 = bool(rope) and _form(rope) == _form(_DINOV3)
    is_known = not rope or is_dinov3 or _form(rope) == _form(_EVA02)
    unsupported = {
        "rope": rope and (not is_known or biases),
        "posemb_prefix": biases and model["posemb"] != "none" and not model["posemb_prefix"],
        "relative_bias": biases and (model["registers"] or not model["class_token"]),
        "pool": model["pool"] == "map",
        "qkv_bias": model["qkv_bias"] is True,
        "mlp": model["mlp"] not in ("gelu", "swiglu"),
        "norm_eps": abs(model["norm_eps"] - (1e-5 if is_dinov3 else 1e-6)) > 1e-12
        and (is_dinov3 or model["norm_eps"] > 1e-5),
        "stride": model["stride"] and specs.pair(model["stride"]) != specs.pair(model["patch_size"]),
        "padding": model["padding"] != "valid",
        "post_norm": model["post_norm"] and biases,
        "attn_norm": model["attn_norm"] and biases,
        **{field: model[field] for field in ("rep_size", "distilled", "stem", "qk_norm")},
        "embed_bias": model["embed_bias"] == model["pre_norm"],
        "pre_norm": model["pre_norm"] and biases,
        "layer_scale": model["layer_scale"] is not None and model["post_norm"],
    }
    for field, is_unsupported in unsupported.items():
        if is_unsupported:
            raise UserError(
                f"timm cannot build a model with model.{field}={model[field]!r} together with its other fields from a "
                "config.json; use --to=workdir."
            )
    return "beit_base_patch16_224" if biases else "vit_small_patch16_dinov3" if is_dinov3 else "eva02_tiny_patch14_224"


def _form(rope: Mapping[str, Any]) -> tuple[Any, ...]:
    defaults = {"type": "Axial", "coordinates": "centred", "pairs": "halves"}
    return tuple(rope.get(key, value) for key, value in defaults.items())


def arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that make the architecture match the complete spec, except image sizes."""
    is_gated, biases, rope = model["mlp"] == "swiglu", model["relative_bias"] != "none", model["rope"] or {}
    args = {
        "patch_size": list(specs.pair(model["patch_size"])),
        "embed_dim": model["width"],
        "depth": model["depth"],
        "num_heads": model["num_heads"],
        "mlp_ratio": timm_config.ratio(model["mlp_dim"], model["width"]),
        "swiglu_mlp": is_gated,
        "scale_mlp": model["mlp_norm"],
        "qkv_bias": bool(model["qkv_bias"]),
        "global_pool": timm_config.POOLS[model["pool"]],
        "use_fc_norm": model["norm_after_pool"],
        "use_abs_pos_emb": model["posemb"] == "learn",
        "init_values": model["layer_scale"],
    }
    if biases:
        shared = model["relative_bias"] == "shared"
        return args | {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
    args |= {
        "qkv_fused": True,
        "swiglu_align_to": 0,
        "scale_attn_inner": model["attn_norm"],
        "use_post_norm": model["post_norm"],
        "use_pre_transformer_norm": model["pre_norm"],
        "use_post_transformer_norm": not model["norm_after_pool"],
        "class_token": model["class_token"],
        "num_reg_tokens": model["registers"],
        "no_embed_class": not model["posemb_prefix"],
        "use_rot_pos_emb": bool(rope),
        "rope_temperature": rope.get("base", 100.0),
        "dynamic_img_size": False,
        **{f"rope_{key}_coords": rope[key] for key in ("shift", "jitter", "rescale") if rope.get(key) is not None},
    }
    if _form(rope) == _form(_EVA02):
        reference = rope.get("reference")
        args["ref_feat_shape"] = None if reference is None else list(specs.pair(reference))
    return args
