"""Convert timm's VisionTransformer, VisionTransformerDistilled, NaFlexVit, hybrids and MlpMixer, and the original DeiT."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from vit_jax.pretrained import originals, specs, timm_config, timm_eva, timm_naflex
from vit_jax.pretrained.links import (
    Link,
    conv,
    dense,
    from_heads,
    norm,
    same,
    shape_of,
    to_heads,
    to_ours,
    to_theirs,
)
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new, write_folder
from vit_jax.pretrained.timm_config import TimmArgs
from vit_jax.types import PosembMethod, Sincos, UserError

# Arrays that only a supported network has.
_VIT, _MIXER = "blocks.0.attn.qkv.weight", "blocks.0.mlp_tokens.fc1.weight"
# Array names by which unsupported networks are recognized.
_OTHERS = {
    r"^layer1\.0\.conv1\.": "a ResNet",
    r"^layers\.\d+\.blocks\.\d+\.attn\.relative_position": "a Swin transformer",
    r"^stages\.\d+\.blocks\.\d+\.(conv_dw|gamma)": "a ConvNeXt",
    r"^conv_stem\.weight": "an EfficientNet or MobileNet",
    r"^blocks\.\d+\.attn\.(rel_pos|rope|lambda_q1)": "a SAM or differential ViT",
    r"^blocks\.\d+\.(attns|in_proj)\.": "a ViT with parallel layers",
    r"^blocks\.\d+\.(linear_tokens|mlp_channels\.gate)\.": "a ResMLP or gMLP",
    r"^patch_embed\.backbone\.(conv1|bn1|0)\.": "a hybrid with another backbone than BiT's ResNet",
    r"^(module\.)?visual\.": "a complete CLIP model",
    r"^features\.\d": "a VGG or another feature network",
    r"^stages?\.\d|^stem\.\d": "a convolutional or hierarchical network",
}
_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
# The architectures that arguments can turn into any plain ViT, by the largest width for which each is used, and their
# patch sizes: an export is named after the nearest.
_SIZES = (("tiny", 192), ("small", 384), ("base", 768), ("large", 1024), ("huge", 1280), ("giant", 1408))
_PATCHES = {
    "tiny": (16,), "small": (16, 32, 8), "base": (16, 32, 8), "large": (16, 32, 14), "huge": (14,), "giant": (14,),
    "gigantic": (14,),
}  # fmt: skip
_MIXERS = {  # arguments cannot set width, depth and patch size
    (width, depth, (patch, patch)): f"mixer_{size}{patch}_224"
    for size, width, depth in (("s", 512, 8), ("b", 768, 12), ("l", 1024, 24))
    for patch in (16, 32)
}


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the arrays have timm's names, for any network, or the config has an architecture."""
    patterns = [*_OTHERS, "^(timm_model.)?blocks.0.(attn.qkv|mlp_tokens.fc1).weight"]
    return isinstance(config.get("architecture"), str) or any(
        re.match(pattern, name) for pattern in patterns for name in arrays
    )


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a timm state dict, with its config.json or {}.

    Fields of the spec are inferred from the arrays, else read from the config, else implied by the architecture's name,
    else assumed, with a note. Raises UserError for other networks and unsupported variants.
    """
    args, grid = timm_config.read_args(config, origin), None
    naflex_notes: list[str] = []
    if timm_naflex.matches(arrays):
        arrays, grid, naflex_notes = timm_naflex.as_plain(arrays, args, origin)
    arrays = originals.as_timms(arrays)
    is_packed = "blocks.0.mlp.fc1_g.weight" not in arrays
    if timm_eva.matches(arrays, args):
        model, notes = timm_eva.read_spec(arrays, config, args, origin)
        table = timm_eva.links(specs.complete(model, "vit_jax"), "blocks.0.attn.qkv.weight" in arrays, is_packed)
        state = _StateDict(arrays, origin)
    else:
        arrays = {_rename(name): array for name, array in arrays.items()}
        _check_network(arrays, args, origin)
        state = _StateDict(arrays, origin)
        model, notes = (_mixer_spec if _MIXER in arrays else _vit_spec)(state, args)
        model |= {} if grid is None else {"posemb_grid": grid}
        table = links(specs.complete(model, "vit_jax"), is_packed)
    params = to_ours(table, arrays, origin)
    size, size_notes = _image_size(specs.complete(model, "vit_jax"), state, args)
    first = "embed/kernel" if not model.get("stem") else "stem/root/kernel"
    preprocessing, image_notes = timm_config.read_preprocessing(config, size, params[first].shape[2], origin)
    names = timm_config.read_class_names(config, model["num_classes"], origin)
    notes = [*notes, *naflex_notes, *size_notes, *image_notes, *timm_config.read_license(config)]
    posemb = _resize_rule(arrays, args)
    return Pretrained(model, params, preprocessing, names, origin, posemb, "bicubic", tuple(notes))


def _resize_rule(arrays: FlatParams, args: TimmArgs) -> PosembMethod:
    """Return how the weights' authors resize position embeddings; only DINOv2's own files contain a mask token.

    A state dict without config counts as the original DeiT's, whose code, like MAE's and I-JEPA's, does not antialias.
    """
    is_dino = args.tag == "dino" or re.search("_dinov2$", args.architecture or "")
    is_own = {"mask_token", "pos_embed", "cls_token", "blocks.0.ls1.gamma"} <= arrays.keys()
    if is_dino or (is_own and "reg_token" not in arrays):
        return "dinov2"
    return "bicubic" if args.architecture or is_own else "bicubic_no_antialias"


def _rename(name: str) -> str:
    """Rename arrays of the original DeiT III to timm's names."""
    return re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)


def _check_network(arrays: FlatParams, args: TimmArgs, origin: str) -> None:
    network = next((kind for pattern, kind in _OTHERS.items() for name in arrays if re.match(pattern, name)), None)
    if re.search("_rope_|_pe_|_lingbot|_rpn_", args.architecture or ""):  # these have a ViT's array names
        network = "a ViT with rotary positions or post-normalization"
    if network or not {_VIT, _MIXER} & set(arrays):
        name = f" ({args.architecture})" if args.architecture else ""
        raise UserError(
            f"{origin} looks like {network or 'another network'}{name}; of timm's networks only ViT, DeiT, BEiT, EVA, DINOv3, "
            "hybrids of BiT's ResNet and ViT, and MLP-Mixer are supported."
        )


class _StateDict:
    """The arrays of a model, and the quantities inferred from them."""

    def __init__(self, arrays: FlatParams, origin: str):
        self.arrays, self.origin = arrays, origin

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        return shape_of(self.arrays, name, rank, self.origin)

    def depth(self) -> int:
        return 1 + max(int(match[1]) for name in self.arrays if (match := re.match(r"blocks\.(\d+)\.", name)))

    def classes(self) -> int:
        return self.shape("head.weight", 2)[0] if "head.weight" in self else 0


def _vit_spec(state: _StateDict, args: TimmArgs) -> tuple[dict[str, Any], list[str]]:
    width, _, *patch = state.shape("patch_embed.proj.weight", 4)
    hidden = state.shape("blocks.0.mlp.fc2.weight", 2)[1]
    packed = "blocks.0.mlp.fc1.weight" in state and state.shape("blocks.0.mlp.fc1.weight", 2)[0] == 2 * hidden
    heads = _num_heads(width, state, args)
    # All CLIP models in timm have epsilon 1e-5, and only they have norm_pre.
    norm_eps = args.norm_eps if args.architecture or "norm_pre.weight" not in state else 1e-5
    mlp = _mlp_type("blocks.0.mlp.fc1_g.weight" in state or packed, args, state)
    model = {
        "type": "vit.ViT",
        "num_classes": state.classes(),
        "width": width,
        "depth": state.depth(),
        "mlp_dim": hidden,
        "num_heads": heads,
        "patch_size": specs.int_or_pair(*patch),
        "stem": _stem(state),
        "pool": _pool(state, args),
        "class_token": "cls_token" in state,
        "distilled": "dist_token" in state,
        "registers": state.shape("reg_token", 3)[1] if "reg_token" in state else 0,
        "posemb": "learn" if "pos_embed" in state else "none",
        "rep_size": state.shape("pre_logits.fc.bias", 1)[0] if "pre_logits.fc.bias" in state else None,
        "mlp": mlp,
        "mask_token": "mask_token" in state,
        "norm_eps": norm_eps,
        "norm_after_pool": "fc_norm.weight" in state,
        "pre_norm": "norm_pre.weight" in state,
        "embed_bias": "patch_embed.proj.bias" in state,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "layer_scale": args.init_values or 1e-5 if "blocks.0.ls1.gamma" in state else None,
    }
    model["posemb_prefix"] = _has_posemb_prefix(model, state, args)
    _check_vit(model, state, args)
    notes = []
    if args.tag == "openai" and mlp == "gelu":
        notes = ["OpenAI trained CLIP with mlp='quick_gelu', but timm's config states exact GELU, which is used."]
    elif not args.architecture:
        notes = [
            f"It has no config.json: assumed num_heads={heads}, mlp={mlp!r}, norm_eps={norm_eps}, pool={model['pool']!r} "
            "and no rotary positions."
        ]
    return model, notes


def _check_vit(model: Mapping[str, Any], state: _StateDict, args: TimmArgs) -> None:
    """Raise UserError for unsupported or ambiguous models."""
    if model["posemb"] == "none" and args.pos_embed not in ("", "none"):
        raise UserError(
            f"{state.origin} has no pos_embed; of ViTs with rotary positions only DINOv3 and EVA-02 are supported."
        )
    if model["pool"] == "tok" and not model["class_token"]:
        raise UserError(f"{state.origin} has no cls_token, but its config.json has global_pool='token'.")
    if model["pool"] == "map" and model["class_token"] and not args.architecture:
        raise UserError(
            f"{state.origin} has a class token and attention pooling, for which it needs a config.json with its architecture."
        )
    if model["pool"] == "map" and model["mlp"] == "swiglu":
        raise UserError(f"{state.origin} has attention pooling and SwiGLU, which are not supported together.")


def _num_heads(width: int, state: _StateDict, args: TimmArgs) -> int:
    if "blocks.0.attn.q_norm.weight" in state:
        return width // state.shape("blocks.0.attn.q_norm.weight", 1)[0]
    heads = args.num_heads or timm_config.HEADS.get(width) or max(width // 64, 1)
    if width % heads:
        raise UserError(
            f"{state.origin} has width {width}, which is not divisible by {heads} heads; set num_heads in its config.json."
        )
    return heads


def _mlp_type(is_gated: bool, args: TimmArgs, state: _StateDict) -> str:
    if is_gated and args.act_layer in (None, "silu", "swish"):
        return "swiglu"
    activation = args.act_layer or "gelu"
    if is_gated or activation not in _ACTIVATIONS:
        raise UserError(
            f"{state.origin} has act_layer={args.act_layer!r}{' in gated MLPs' if is_gated else ''}; expected one of "
            f"{', '.join(_ACTIVATIONS)}, or silu in gated MLPs."
        )
    return activation


def _pool(state: _StateDict, args: TimmArgs) -> str:
    inferred = (
        "map"
        if "attn_pool.latent" in state
        else "avg"
        if "fc_norm.weight" in state or "cls_token" not in state
        else "token"
    )
    pool = args.global_pool or inferred
    pools = {theirs: ours for ours, theirs in timm_config.POOLS.items()}
    if pool not in pools:
        raise UserError(f"{state.origin} has global_pool={pool!r}; expected one of {', '.join(pools)}.")
    return pools[pool]


def _stem(state: _StateDict) -> dict[str, Any] | None:
    if not any(name.startswith("patch_embed.backbone.") for name in state.arrays):
        return None
    units: dict[int, int] = {}
    for name in state.arrays:
        if match := re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", name):
            stage, unit = int(match[1]), int(match[2])
            units[stage] = max(units.get(stage, 0), unit + 1)
    stages = tuple(units.get(i, 1) for i in range(max(units, default=-1) + 1))
    return {"type": "resnet.ResNet", "stages": stages, "norm_eps": 1e-5, "weight_norm": "var", "weight_eps": 1e-8}


def _has_posemb_prefix(model: Mapping[str, Any], state: _StateDict, args: TimmArgs) -> bool:
    """Return whether the position embeddings include the tokens before the patches."""
    prefix = specs.prefix_tokens(model)
    if "pos_embed" not in state or not prefix or model["distilled"]:
        return True
    n = state.shape("pos_embed", 3)[1]
    if args.no_embed_class is not None:
        return not args.no_embed_class
    if args.image_size:
        patches = specs.num_patches(model, args.image_size)
        if patches in (n, n - prefix):
            return patches != n
    return specs.square_side(n - prefix) is not None or specs.square_side(n) is None


def _image_size(model: Mapping[str, Any], state: _StateDict, args: TimmArgs) -> tuple[tuple[int, int], list[str]]:
    """Return (height, width) of the images that the arrays are for, and notes."""
    if model.get("posemb_grid") and args.image_size:  # the model resizes its positions
        return args.image_size, []
    if model["type"] == "mixer.Mixer":
        n = state.shape(_MIXER, 2)[1]
    elif model["posemb"] == "learn":
        n = state.shape("pos_embed", 3)[1] - specs.prefix_tokens(model) * model["posemb_prefix"]
    else:
        side = timm_eva.grid_side(state.arrays)
        if args.image_size or side is None:
            return args.image_size or (224, 224), [] if args.image_size else ["Its image size is unknown: assumed 224."]
        n = side * side
    if args.image_size and specs.num_patches(model, args.image_size) == n:
        return args.image_size, []
    side = specs.square_side(n)
    if side is None:
        raise UserError(
            f"{state.origin} has {n} patches, which is not a square grid; set the image size (input_size) in its config.json."
        )
    height, width = specs.pixels_per_patch(model)
    size = (side * height, side * width)
    notes = [f"Its config.json states images of {args.image_size}, but its arrays are for {size}."]
    return size, notes if args.image_size else []


def _mixer_spec(state: _StateDict, args: TimmArgs) -> tuple[dict[str, Any], list[str]]:
    width, _, *patch = state.shape("stem.proj.weight", 4)
    hidden = {part: state.shape(f"blocks.0.mlp_{part}.fc1.weight", 2)[0] for part in ("tokens", "channels")}
    if hidden["tokens"] != state.shape("blocks.0.mlp_tokens.fc2.weight", 2)[1]:
        raise UserError(f"{state.origin} is a Mixer with gated MLPs, which are not supported.")
    model = {
        "type": "mixer.Mixer",
        "num_classes": state.classes(),
        "width": width,
        "depth": state.depth(),
        "tokens_mlp_dim": hidden["tokens"],
        "channels_mlp_dim": hidden["channels"],
        "patch_size": specs.int_or_pair(*patch),
        "mlp": _mlp_type(False, args, state),
        "norm_eps": args.norm_eps,
    }
    notes = ["It has no config.json: assumed mlp='gelu' and norm_eps=1e-06."]
    return model, [] if args.architecture else notes


# Links.


def links(model: Mapping[str, Any], packed: bool = True) -> list[Link]:
    """Return the name table of a complete spec; `packed`: SwiGLU's gate and up projections are one array (SwiGLUPacked)."""
    return _mixer_links(model) if model["type"] == "mixer.Mixer" else _vit_links(model, packed)


def _vit_links(model: Mapping[str, Any], packed: bool) -> list[Link]:
    table = [conv("patch_embed.proj.weight", "embed/kernel")]
    optional = {
        "embed_bias": ("patch_embed.proj.bias", "embed/bias"),
        "class_token": ("cls_token", "cls"),
        "distilled": ("dist_token", "dist"),
        "registers": ("reg_token", "registers"),
        "mask_token": ("mask_token", "mask_token"),
    }
    table += [same(*names) for field, names in optional.items() if model[field]]
    if model["posemb"] == "learn":
        table.append(same("pos_embed", "posemb/table"))
    if model["stem"]:
        table += _resnet_links("patch_embed.backbone", model["stem"]["stages"])
    if model["pre_norm"]:
        table += norm("norm_pre", "pre_norm")
    for i in range(model["depth"]):
        table += _block_links(f"blocks.{i}", f"encoder/block_{i}", model, packed)
    table += norm("fc_norm", "norm") if model["norm_after_pool"] else norm("norm", "encoder/norm")
    if model["pool"] == "map":
        heads = model["num_heads"]
        table += [same("attn_pool.latent", "pool/probe"), *norm("attn_pool.norm", "pool/norm")]
        table += to_heads("attn_pool.q", ["pool/attn/query"], heads)
        table += to_heads("attn_pool.kv", ["pool/attn/key", "pool/attn/value"], heads)
        table += from_heads("attn_pool.proj", "pool/attn/out", heads) + _mlp_links("attn_pool.mlp", "pool/mlp")
    if model["rep_size"]:
        table += dense("pre_logits.fc", "rep")
    if model["num_classes"]:
        table += dense("head", "head")
        table += dense("head_dist", "head_dist") if model["distilled"] else []
    return table


def _block_links(theirs: str, ours: str, model: Mapping[str, Any], packed: bool) -> list[Link]:
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
        return table + _mlp_links(f"{theirs}.mlp", f"{ours}/mlp")
    table += dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    if packed:
        return table + dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/gate", f"{ours}/mlp/up")
    return table + dense(f"{theirs}.mlp.fc1_g", f"{ours}/mlp/gate") + dense(f"{theirs}.mlp.fc1_x", f"{ours}/mlp/up")


def _mlp_links(theirs: str, ours: str) -> list[Link]:
    return dense(f"{theirs}.fc1", f"{ours}/up") + dense(f"{theirs}.fc2", f"{ours}/down")


def _resnet_links(theirs: str, stages: tuple[int, ...]) -> list[Link]:
    root = f"{theirs}.stem" if stages else theirs  # without stages the backbone is only the root
    table = [conv(f"{root}.conv.weight", "stem/root/kernel"), *norm(f"{root}.norm", "stem/root_norm")]
    for i, units in enumerate(stages):
        for j in range(units):
            unit, our_unit = f"{theirs}.stages.{i}.blocks.{j}", f"stem/stage_{i}/unit_{j}"
            for k in (1, 2, 3):
                table += [conv(f"{unit}.conv{k}.weight", f"{our_unit}/conv{k}/kernel")]
                table += norm(f"{unit}.norm{k}", f"{our_unit}/norm{k}")
            if j == 0:
                table += [conv(f"{unit}.downsample.conv.weight", f"{our_unit}/conv_proj/kernel")]
                table += norm(f"{unit}.downsample.norm", f"{our_unit}/norm_proj")
    return table


def _mixer_links(model: Mapping[str, Any]) -> list[Link]:
    table = [conv("stem.proj.weight", "embed/kernel"), same("stem.proj.bias", "embed/bias")]
    for i in range(model["depth"]):
        theirs, ours = f"blocks.{i}", f"encoder/block_{i}"
        table += norm(f"{theirs}.norm1", f"{ours}/norm1") + norm(f"{theirs}.norm2", f"{ours}/norm2")
        for part in ("tokens", "channels"):
            table += _mlp_links(f"{theirs}.mlp_{part}", f"{ours}/{part}")
    table += norm("norm", "encoder/norm")
    return table + (dense("head", "head") if model["num_classes"] else [])


# Writing.


def write(
    folder: Path,
    model: Mapping[str, Any],
    params: FlatParams,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> list[str]:
    """Write config.json and model.safetensors for timm.create_model("local-dir:FOLDER", pretrained=True).

    Returns notes on differences in timm's computation. Raises UserError naming the field for a model that timm cannot
    build from a config.json.
    """
    check_new(folder)
    model = specs.complete(model, "timm")
    is_mixer = model["type"] == "mixer.Mixer"
    is_eva = not is_mixer and timm_eva.is_needed(model)
    own = _mixer_architecture if is_mixer else timm_eva.architecture if is_eva else _vit_architecture
    architecture = own(model)
    notes = timm_config.differences(architecture, model)
    if model.get("mask_token"):
        notes.append("timm's ViTs have no mask token, so it is left out; outputs for whole images do not depend on it.")
        model["mask_token"], params = False, {name: x for name, x in params.items() if name != "mask_token"}
    size = preprocessing.size if preprocessing else specs.image_size(model, params, "timm")
    channels = params["stem/root/kernel" if model.get("stem") else "embed/kernel"].shape[2]
    if not is_mixer:
        if model["posemb"] in get_args(Sincos):
            model, params = specs.with_posemb_table(model, params, size)
        model, params = specs.with_embed_bias(model, params)
    of_model = timm_config.mixer_arguments if is_mixer else timm_eva.arguments if is_eva else timm_config.vit_arguments
    config, image_notes = timm_config.make_config(
        architecture, model, of_model(model), preprocessing, size, channels, class_names
    )
    table = timm_eva.links(model, fused=True, packed=not model["mlp_norm"]) if is_eva else links(model)
    write_folder(folder, to_theirs(table, params), {"config.json": config})
    return notes + image_notes


def _vit_architecture(model: Mapping[str, Any]) -> str:
    """Return the architecture to configure by arguments; raises UserError for a field that no argument sets."""
    distilled, swiglu = model["distilled"], model["mlp"] == "swiglu"
    unsupported = {
        "rep_size": model["rep_size"],
        "stride": model["stride"] and specs.pair(model["stride"]) != specs.pair(model["patch_size"]),
        "padding": model["padding"] != "valid",
        "posemb": model["posemb"] not in ("learn", *get_args(Sincos), *(() if distilled else ("none",))),
        "posemb_grid": model["posemb_grid"] is not None,
        "embed_bias": model["embed_bias"] and model["pre_norm"],
        "mlp": swiglu and (model["pool"] == "map" or model["stem"] or distilled),
        "distilled": distilled
        and (model["registers"] or not model["posemb_prefix"] or model["norm_after_pool"] or model["stem"]),
        "stem": model["stem"] and (tuple(model["stem"]["stages"]) not in _HYBRIDS or model["stem"]["width"] != 64),
        "norm_eps": model["norm_eps"] > 1e-5,
    }
    for field, is_unsupported in unsupported.items():
        if is_unsupported:
            combined = " together with its other fields" if field in ("mlp", "distilled", "embed_bias") else ""
            raise UserError(
                f"timm cannot build a model with model.{field}={model[field]!r}{combined} from a config.json; use --to=workdir."
            )
    if model["stem"]:
        return _HYBRIDS[tuple(model["stem"]["stages"])]
    if distilled:
        size = next(name for name, most in _SIZES[:3] if model["width"] <= most or name == "base")
        return f"deit_{size}_distilled_patch16_224"
    if swiglu:  # mlp_layer cannot be expressed in JSON, so the architecture must have it
        return "vit_giant_patch14_dinov2"
    # Neither can norm_eps: CLIP's architectures have 1e-5, all others 1e-6.
    if model["norm_eps"] > 3e-6:
        return "vit_base_patch16_clip_224"
    size = next((name for name, most in _SIZES if model["width"] <= most), "gigantic")
    patch, _ = specs.pair(model["patch_size"])
    return f"vit_{size}_patch{patch if patch in _PATCHES[size] else _PATCHES[size][0]}_224"


def _mixer_architecture(model: Mapping[str, Any]) -> str:
    shape = (model["width"], model["depth"], specs.pair(model["patch_size"]))
    if shape not in _MIXERS:
        raise UserError(
            f"timm cannot build a Mixer with model.width={shape[0]}, depth={shape[1]}, patch_size={model['patch_size']}; "
            "expected size S, B or L with patches of 16 or 32. Use --to=workdir."
        )
    return _MIXERS[shape]
