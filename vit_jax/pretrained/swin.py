"""Convert timm's and transformers' Swin: read, write and name its arrays."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.pretrained import processor, specs, timm_config
from vit_jax.pretrained.links import Link, conv, dense, from_heads, norm, same, shape_of, to_heads, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new, write_folder
from vit_jax.types import UserError

_TIMM = re.compile(r"layers\.\d+\.blocks\.\d+\.attn\.(qkv|relative_position)")
_HF = re.compile(r"(?:swin(?:v2)?\.)?encoder\.layers\.\d+\.blocks\.\d+\.")
# Arrays that follow from the shapes, saved by older versions.
_BUFFERS = re.compile(r"(relative_position_index|relative_coords_table|attn_mask|\.attn\.k_bias)$|^(pooler|decoder)\.")
# Names in the modules of transformers 5, and on disk.
_NEWER = (
    (r"attention\.([qkv])_proj\.", lambda m: f"attention.self.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }."),
    (r"attention\.o_proj\.", "attention.output.dense."),
    (r"attention\.relative_position_bias\.", "attention.self."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
DEFAULTS = {
    "window": 7, "version": 1, "patch_size": 4, "mlp_ratio": 4.0, "qkv_bias": True, "trained_windows": None, "mask_token": False,
    "norm_eps": 1e-5,
}  # fmt: skip


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the arrays have the names of a Swin."""
    return any(_TIMM.match(name) or _HF.match(name) for name in arrays)


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a state dict of timm's SwinTransformer or SwinTransformerV2, or transformers' Swin or Swinv2.

    Raises UserError for other hierarchical networks, and for settings in the config that are not supported.
    """
    library = "transformers" if any(_HF.match(name) for name in arrays) else "timm"
    arrays = {_rename(name, library): array for name, array in arrays.items()}
    arrays = {name: array for name, array in arrays.items() if not _BUFFERS.search(name)}
    model, size, notes = _spec(arrays, config, library, origin)
    params = to_ours(links(model, library), arrays, origin)
    channels = params["embed/kernel"].shape[2]
    if library == "timm":
        images, image_notes = timm_config.read_preprocessing(config, size, channels, origin)
        names = timm_config.read_class_names(config, model["num_classes"], origin)
    else:
        given = config.get("preprocessor") or {}
        images, image_notes = processor.read_preprocessing(given, size, channels, "vit", origin)
        labels = config.get("id2label") or {}
        found = tuple(str(labels.get(str(i))) for i in range(model["num_classes"]))
        names = None if not labels or found == tuple(f"LABEL_{i}" for i in range(len(found))) else found
    return Pretrained(model, params, images, names, origin, "bicubic", notes=tuple(notes + image_notes))


def _rename(name: str, library: str) -> str:
    name = re.sub(r"^swin(v2)?\.", "", name)
    for newer, older in _NEWER if library == "transformers" else ():
        name = re.sub(newer, older, name)
    return name


def _spec(
    arrays: FlatParams, config: Mapping[str, Any], library: str, origin: str
) -> tuple[dict[str, Any], tuple[int, int], list[str]]:
    """Return the network, its image size (height, width), and notes."""
    hf = library == "transformers"
    stem = "embeddings.patch_embeddings.projection.weight" if hf else "patch_embed.proj.weight"
    width, _, patch, _ = shape_of(arrays, stem, 4, origin)
    blocks = sorted(
        {
            (int(m[1]), int(m[2]))
            for name in arrays
            if (m := re.match(r"(?:encoder\.)?layers\.(\d+)\.blocks\.(\d+)\.", name))
        }
    )
    depths = tuple(sum(stage == s for s, _ in blocks) for stage in range(blocks[-1][0] + 1))
    first = [f"{'encoder.' if hf else ''}layers.{stage}.blocks.0." for stage in range(len(depths))]
    attention = "attention.self." if hf else "attn."
    version = 2 if f"{first[0]}{attention}logit_scale" in arrays else 1
    unread = [name for name in arrays if re.search("absolute_pos|position_embeddings", name)]
    if unread or f"{first[0]}{attention}meta_mlp.fc1.weight" in arrays:
        raise UserError(f"{origin} is a Swin with {unread or 'a meta network'}; expected Swin or Swin v2 without them.")
    table = "logit_scale" if version == 2 else "relative_position_bias_table"
    heads = tuple(arrays[f"{block}{attention}{table}"].shape[0 if version == 2 else 1] for block in first)
    args = config if hf else (config.get("model_args") or {})
    name = str(config.get("architecture") or "")
    notes = []
    if version == 1:
        window = (math.isqrt(arrays[f"{first[0]}{attention}{table}"].shape[0]) + 1) // 2
    else:
        stated = re.search(r"window(\d+)", name)
        window = args.get("window_size") or (int(stated[1]) if stated else 8)
        if not args.get("window_size") and not stated:
            notes.append("It does not state its windows: assumed model.window=8.")
    image = (
        args.get("image_size")
        or args.get("img_size")
        or (config.get("pretrained_cfg") or {}).get("input_size", [0, 0])[1]
    )
    stated = re.search(r"_(\d+)$", name)
    size = specs.pair(
        image or (int(stated[1]) if stated else 256 if window in (8, 16) else 384 if window == 12 else 224)
    )
    trained = args.get("pretrained_window_sizes")
    if trained is None and (match := re.search(r"window\d+to\d+", name)):
        trained = [12, 12, 12, 6] if match else None
    mlp = shape_of(arrays, f"{first[0]}{'intermediate.dense' if hf else 'mlp.fc1'}.weight", 2, origin)[0]
    if hf and args.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{origin} has hidden_act={args['hidden_act']!r}; expected 'gelu'.")
    head = "classifier.weight" if hf else "head.fc.weight"
    bias = f"{first[0]}{attention}{'query.bias' if hf else 'q_bias' if version == 2 else 'qkv.bias'}"
    model = {
        "type": "swin.Swin", "num_classes": arrays[head].shape[0] if head in arrays else 0, "width": width, "depths": depths,
        "num_heads": heads, "window": int(window), "version": version, "patch_size": patch, "mlp_ratio": mlp / width,
        "qkv_bias": bias in arrays, "mask_token": "embeddings.mask_token" in arrays,
        "norm_eps": float(args.get("layer_norm_eps", 1e-5)) if hf else 1e-5,
    }  # fmt: skip
    if version == 2 and trained is not None and any(trained):
        model["trained_windows"] = tuple(map(int, trained))
    return model, size, notes


def links(model: Mapping[str, Any], library: str) -> list[Link]:
    """Return the name table of a spec for "timm" or "transformers"; transformers' backbones have no prefix."""
    hf = library == "transformers"
    stem, normed = (
        ("embeddings.patch_embeddings.projection", "embeddings.norm")
        if hf
        else ("patch_embed.proj", "patch_embed.norm")
    )
    found = [conv(f"{stem}.weight", "embed/kernel"), same(f"{stem}.bias", "embed/bias"), *norm(normed, "embed_norm")]
    if model.get("mask_token"):
        found.append(Link("embeddings.mask_token", ("mask_token",), "n b d -> n () () b d"))
    for stage, (depth, k) in enumerate(zip(model["depths"], model["num_heads"], strict=True)):
        for i in range(depth):
            theirs = f"{'encoder.' if hf else ''}layers.{stage}.blocks.{i}"
            found += _block(theirs, f"stage_{stage}/block_{i}", k, model, hf)
        if stage + 1 < len(model["depths"]):
            # timm merges at the beginning of the next stage.
            theirs = f"encoder.layers.{stage}.downsample" if hf else f"layers.{stage + 1}.downsample"
            ours = f"stage_{stage}/merge"
            found += [*dense(f"{theirs}.reduction", f"{ours}/reduce")[:1], *norm(f"{theirs}.norm", f"{ours}/norm")]
    found += norm("layernorm" if hf else "norm", "norm")
    return found + (dense("classifier" if hf else "head.fc", "head") if model["num_classes"] else [])


def _block(theirs: str, ours: str, k: int, model: Mapping[str, Any], hf: bool) -> list[Link]:
    v2, bias = model.get("version", 1) == 2, model.get("qkv_bias", True)
    attention = f"{theirs}.attention.self" if hf else f"{theirs}.attn"
    names = [f"{ours}/attn/{name}" for name in ("query", "key", "value")]
    found = norm(f"{theirs}.{'layernorm_before' if hf else 'norm1'}", f"{ours}/norm1")
    found += norm(f"{theirs}.{'layernorm_after' if hf else 'norm2'}", f"{ours}/norm2")
    if hf:
        for name in ("query", "key", "value"):
            found += to_heads(f"{attention}.{name}", [f"{ours}/attn/{name}"], k, bias and not (v2 and name == "key"))
    else:
        found += to_heads(f"{attention}.qkv", names, k, bias and not v2)
        if v2 and bias:
            found += [
                Link(f"{attention}.{part}_bias", (f"{ours}/attn/{name}/bias",), "(n k h) -> n k h", {"k": k})
                for part, name in (("q", "query"), ("v", "value"))
            ]
    found += from_heads(f"{theirs}.attention.output.dense" if hf else f"{attention}.proj", f"{ours}/attn/out", k)
    if v2:
        mlp = f"{attention}.{'continuous_position_bias_mlp' if hf else 'cpb_mlp'}"
        found.append(same(f"{attention}.logit_scale", f"{ours}/attn/logit_scale"))
        found += [*dense(f"{mlp}.0", f"{ours}/attn/offset_up"), *dense(f"{mlp}.2", f"{ours}/attn/offset_down")[:1]]
    else:
        found.append(same(f"{attention}.relative_position_bias_table", f"{ours}/attn/offset_bias"))
    up, down = ("intermediate.dense", "output.dense") if hf else ("mlp.fc1", "mlp.fc2")
    return found + dense(f"{theirs}.{up}", f"{ours}/mlp/up") + dense(f"{theirs}.{down}", f"{ours}/mlp/down")


def write(
    folder: Path,
    model: Mapping[str, Any],
    params: FlatParams,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
    *,
    library: str,
) -> list[str]:
    """Write a folder for timm.create_model("local-dir:FOLDER", pretrained=True) or transformers; return notes.

    Raises UserError naming the field for a model that the library cannot build.
    """
    check_new(folder)
    model = DEFAULTS | dict(model)
    if preprocessing is None:
        raise UserError(f"{library} needs the size of the images of a Swin; found none.")
    if library == "timm" and model["norm_eps"] != 1e-5:
        raise UserError(
            f"timm cannot build a Swin with model.norm_eps={model['norm_eps']}; expected 1e-5. Use --to=hf."
        )
    notes = []
    if model["mask_token"]:
        notes.append("The mask token is left out, which classification does not use.")
        model, params = model | {"mask_token": False}, {k: x for k, x in params.items() if k != "mask_token"}
    channels = params["embed/kernel"].shape[2]
    configs, more = (_timm_configs if library == "timm" else transformers_configs)(
        model, preprocessing, channels, class_names
    )
    prefix = "" if library == "timm" or not model["num_classes"] else "swinv2." if model["version"] == 2 else "swin."
    arrays = to_theirs(links(model, library), params)
    named = {name if name.startswith("classifier") else f"{prefix}{name}": array for name, array in arrays.items()}
    write_folder(folder, named, configs)
    return notes + more


def _timm_configs(
    model: Mapping[str, Any], images: Preprocessing, channels: int, class_names: tuple[str, ...] | None
) -> tuple[dict[str, Any], list[str]]:
    args = {
        "img_size": list(images.size), "patch_size": model["patch_size"], "embed_dim": model["width"],
        "depths": list(model["depths"]), "num_heads": list(model["num_heads"]), "window_size": model["window"],
        "mlp_ratio": model["mlp_ratio"], "qkv_bias": model["qkv_bias"],
    }  # fmt: skip
    if model["version"] == 2 and model["trained_windows"]:
        args["pretrained_window_sizes"] = list(model["trained_windows"])
    described, notes = timm_config.image_config(images, images.size)
    config = {
        "architecture": "swinv2_tiny_window8_256" if model["version"] == 2 else "swin_tiny_patch4_window7_224",
        "num_classes": model["num_classes"], "model_args": args,
        "pretrained_cfg": {
            "num_classes": model["num_classes"], "input_size": [channels, *images.size], "fixed_input_size": True,
            "classifier": "head.fc", "first_conv": "patch_embed.proj", **described,
        },
    }  # fmt: skip
    if class_names is not None and len(class_names) == model["num_classes"]:
        config["label_names"] = list(class_names)
    return {"config.json": config}, notes


def transformers_configs(
    model: Mapping[str, Any], images: Preprocessing, channels: int, class_names: tuple[str, ...] | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the config files for transformers, and notes."""
    kind, classes = "Swinv2" if model["version"] == 2 else "Swin", model["num_classes"]
    config = {
        "architectures": [f"{kind}ForImageClassification" if classes else f"{kind}Model"], "model_type": kind.lower(),
        "image_size": specs.int_or_pair(*images.size), "patch_size": model["patch_size"], "num_channels": channels,
        "embed_dim": model["width"], "depths": list(model["depths"]), "num_heads": list(model["num_heads"]),
        "window_size": model["window"], "mlp_ratio": model["mlp_ratio"], "qkv_bias": model["qkv_bias"], "hidden_act": "gelu",
        "layer_norm_eps": model["norm_eps"], "dtype": "float32",
        **specs.label_fields(class_names or [f"LABEL_{i}" for i in range(classes)]),
    }  # fmt: skip
    if model["version"] == 2:
        config["pretrained_window_sizes"] = list(model["trained_windows"] or (0,) * len(model["depths"]))
    described, notes = processor.make_config(images)
    return {"config.json": config, "preprocessor_config.json": described}, notes
