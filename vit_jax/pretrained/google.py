"""Convert Google's .npz files: vision_transformer (ViT, AugReg, SAM, GSAM, hybrids, Mixer, LiT) and big_vision.

All layouts are converted to the names in big_vision's current models/vit.py: modules numbered per class,
`pos_embedding` at the top level and one module per block. Array shapes equal this library's.
"""

import contextlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vit_jax.pretrained import specs, wrappers
from vit_jax.pretrained.links import Link, same, shape_of, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new
from vit_jax.types import Sincos, UserError

FORMAT = "a Google .npz"
# Set in the code of these models, not in their files: flax's nn.gelu and epsilons, and models_resnet.py.
CODE: dict[str, Any] = {"mlp": "gelu_tanh", "norm_eps": 1e-6}
STEM_CODE: dict[str, Any] = {"norm_eps": 1e-6, "weight_norm": "std", "weight_eps": 1e-5}
# Fields with a single supported value; timm supports other values.
FIXED_FIELDS: dict[str, Any] = {
    "registers": 0,
    "distilled": False,
    "layer_scale": None,
    "qk_norm": False,
    "qkv_bias": True,
    "embed_bias": True,
    "pre_norm": False,
    "norm_after_pool": False,
    "mask_token": False,
    "rope": None,
    "relative_bias": "none",
    "posemb_grid": None,
    "post_norm": False,
    "attn_norm": False,
    "mlp_norm": False,
}

_BLOCK, _MIXER_BLOCK = r"Transformer/encoderblock_(\d+)/", r"MixerBlock_(\d+)/"
# Before Flax Linen, modules were numbered in order of creation across classes.
_NUMBERED = re.compile(r"(MultiHeadDotProductAttention|LayerNorm|MlpBlock|Dense|MAPHead)_(\d+)")
_ROOT = re.compile(r"((?:[^/]+/)*?)(?:Transformer/encoderblock|MixerBlock_0/)")
_GROUP_NORM = re.compile(r"gn(\d+|_root|_proj)/(scale|bias)$")
_ORIGINAL_POSEMB = "Transformer/posembed_input/pos_embedding"
_POSEMBS = (_ORIGINAL_POSEMB, "Transformer/pos_embedding")
_SCANNED = "Transformer/encoderblock/"
# Arrays of the attention pooling head in files from before it became a module.
_INLINED_HEAD = re.compile(r"probe$|(MultiHeadDotProductAttention|LayerNorm|MlpBlock)_0/")
_PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the arrays have the names of Google's models."""
    return any(map(_ROOT.match, arrays))


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a Google .npz; raises UserError if it does not contain a ViT, hybrid or Mixer for images."""
    inside, branch, branch_notes = model_branch(arrays, origin)
    theirs = to_big_vision(inside)
    is_mixer = any(re.match(_MIXER_BLOCK, name) for name in theirs)
    model, patches = (_mixer_spec if is_mixer else _vit_spec)(theirs, origin)
    first = theirs["stem/kernel"] if is_mixer else theirs.get("conv_root/kernel", theirs["embedding/kernel"])
    params = to_ours(links(specs.complete(model, FORMAT)), theirs, origin)

    notes = [
        "The file contains only arrays: assumed GELU's tanh approximation and LayerNorm epsilon 1e-6, as in its code."
    ]
    notes += branch_notes
    if "stem" in model:
        notes.append("Assumed that its ResNet standardizes weights by std + 1e-5 and has GroupNorm epsilon 1e-6.")
    if model.get("pool") == "gap":
        notes.append("It has neither a class token nor a pooling head: assumed global average pooling.")
    if model.get("posemb") == "sincos2d":
        notes.append("It has no position embeddings: assumed sincos2d, as in big_vision, and images of 224 pixels.")
    classes = model["num_classes"]
    if classes and branch.endswith("img/"):
        notes.append(f"Its head maps to the {classes} dimensions shared by image and text, not to classes.")
    elif classes:
        notes.append(f"The file does not name its {classes} classes.")
    is_original = _ORIGINAL_POSEMB in inside or "stem/kernel" in arrays
    preprocessing, note = _preprocessing(model, patches, first.shape[2], is_original)
    return Pretrained(model, params, preprocessing, None, origin, notes=(*notes, note))


def _preprocessing(
    model: Mapping[str, Any], patches: int | None, channels: int, is_original: bool
) -> tuple[Preprocessing, str]:
    """Return the authors' evaluation preprocessing and a note about it.

    The original resizes without keeping the aspect ratio (input_pipeline.py), and so does big_vision for image-text
    models (siglip_lit_coco.py). For classification big_vision crops the center (configs/vit_i1k.py and
    mlp_mixer_i1k.py: resize_small(256)|central_crop(224), with area interpolation).
    """
    side = specs.square_side(patches) if patches else None
    rows, cols = specs.pixels_per_patch(model)
    size = (side * rows, side * cols) if side else (224, 224)
    half = (0.5,) * channels
    if is_original or not model["num_classes"] or model.get("pool") == "map":
        preprocessing = Preprocessing(size, size, "bilinear", half, half)
    else:
        preprocessing = Preprocessing(size, round(min(size) * 8 / 7), "box", half, half, keep_ratio=True)
    authors = "the original repository" if is_original else "big_vision"
    return preprocessing, (
        f"The file does not describe the preprocessing: assumed {preprocessing.spec} and values in [-1, 1], as in {authors}."
    )


def _vit_spec(theirs: FlatParams, origin: str) -> tuple[dict[str, Any], int | None]:
    """Return the spec and the number of patches, or None if that is unknown."""
    height, across, _, width = shape_of(theirs, "embedding/kernel", 4, origin)
    _, heads, _ = shape_of(theirs, "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel", 3, origin)
    pool = "tok" if "cls" in theirs else "map" if "MAPHead_0/probe" in theirs else "gap"
    model: dict[str, Any] = {
        "type": "vit.ViT",
        "num_classes": _outputs(theirs, "head/kernel", origin),
        "width": width,
        "depth": _count(theirs, _BLOCK),
        "mlp_dim": shape_of(theirs, "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", 2, origin)[1],
        "num_heads": heads,
        "patch_size": specs.int_or_pair(height, across),
        "pool": pool,
        "posemb": "learn" if "pos_embedding" in theirs else "sincos2d",
        **CODE,
    }
    if rep_size := _outputs(theirs, "pre_logits/kernel", origin):
        model["rep_size"] = rep_size
    if "conv_root/kernel" in theirs:
        stages = range(1, 1 + _count(theirs, r"block(\d+)/", first=1))
        units = [_count(theirs, rf"block{stage}/unit(\d+)/", first=1) for stage in stages]
        root_width = shape_of(theirs, "conv_root/kernel", 4, origin)[3]
        model["stem"] = {"type": "resnet.ResNet", "stages": units, "width": root_width, **STEM_CODE}
    if model["posemb"] == "sincos2d":
        return model, None
    n = shape_of(theirs, "pos_embedding", 3, origin)[1]
    has_slot = pool == "tok" and specs.square_side(n - 1) is not None
    if pool == "tok" and not has_slot:
        model["posemb_prefix"] = False
    patches = n - has_slot
    if specs.square_side(patches) is None:
        raise UserError(f"{origin} has {n} position embeddings; expected a square grid of patches.")
    return model, patches


def _mixer_spec(theirs: FlatParams, origin: str) -> tuple[dict[str, Any], int | None]:
    """Return the spec and the number of patches."""
    height, across, _, width = shape_of(theirs, "stem/kernel", 4, origin)
    patches, tokens_mlp_dim = shape_of(theirs, "MixerBlock_0/token_mixing/Dense_0/kernel", 2, origin)
    if specs.square_side(patches) is None:
        raise UserError(f"{origin} mixes {patches} patches; expected a square grid of patches.")
    return {
        "type": "mixer.Mixer",
        "num_classes": _outputs(theirs, "head/kernel", origin),
        "width": width,
        "depth": _count(theirs, _MIXER_BLOCK),
        "tokens_mlp_dim": tokens_mlp_dim,
        "channels_mlp_dim": shape_of(theirs, "MixerBlock_0/channel_mixing/Dense_0/kernel", 2, origin)[1],
        "patch_size": specs.int_or_pair(height, across),
        **CODE,
    }, patches


def _outputs(arrays: FlatParams, name: str, origin: str) -> int:
    """Return the output width of a dense layer, or 0 if it is absent."""
    return shape_of(arrays, name, 2, origin)[1] if name in arrays else 0


def _count(arrays: FlatParams, pattern: str, first: int = 0) -> int:
    """Count numbered modules by the largest number; `to_ours` reports gaps."""
    return max((int(m[1]) - first + 1 for name in arrays if (m := re.match(pattern, name))), default=0)


# Layouts.


def model_branch(arrays: FlatParams, origin: str) -> tuple[FlatParams, str, list[str]]:
    """Return the arrays of the image model in a file, the prefix of their names, and notes on the other arrays.

    The prefix is "", "params/" (optax), "opt/target/" (flax.optim), "params/img/" for image-text models, or any other.
    """
    branches = [match[1] for name in arrays if (match := _ROOT.match(name))]
    branches = [branch for branch in branches if branch.startswith("opt/target/")] or branches
    candidates = {b: {name: x for name, x in arrays.items() if name.startswith(b)} for b in set(branches)}
    branch, notes = wrappers.choose(candidates, origin)
    others = {_other_branch(name, branch) for name in arrays if not name.startswith(branch)}
    notes = notes if len(candidates) > 1 else []
    if others:
        notes.append(f"Not loaded from the file: {', '.join(sorted(others))}.")
    return {name.removeprefix(branch): x for name, x in arrays.items() if name.startswith(branch)}, branch, notes


def _other_branch(name: str, branch: str) -> str:
    """Return where a name leaves the branch: "params/txt" for "params/txt/head/kernel" and "params/img/"."""
    parts, path = name.split("/"), branch.split("/")
    shared = next((i for i, (part, on) in enumerate(zip(parts, path, strict=False)) if part != on), len(parts) - 1)
    return "/".join(parts[: shared + 1])


def to_big_vision(arrays: FlatParams) -> FlatParams:
    """Rename a model's arrays to big_vision's current names, unstacking scanned blocks and flattening GroupNorms."""
    renamed: FlatParams = {}
    for name, array in zip(_number_by_class(arrays), arrays.values(), strict=True):
        if name in _POSEMBS:
            name = "pos_embedding"
        if _INLINED_HEAD.match(name):
            name = f"MAPHead_0/{name}"
        if _GROUP_NORM.search(name) and array.ndim:
            array = array.reshape(-1)  # (1, 1, 1, c) in files from before 2022
        if name.startswith(_SCANNED) and array.ndim:
            rest = name.removeprefix(_SCANNED)
            renamed |= {f"Transformer/encoderblock_{i}/{rest}": part for i, part in enumerate(array)}
        else:
            renamed[name] = array
    return renamed


def _number_by_class(names: Iterable[str]) -> list[str]:
    """Renumber modules within their class: LayerNorm_0, LayerNorm_2 -> LayerNorm_0, LayerNorm_1."""
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    paths = [name.split("/") for name in names]
    for path in paths:
        for i, part in enumerate(path):
            if match := _NUMBERED.fullmatch(part):
                numbers["/".join(path[:i]), match[1]].add(int(match[2]))

    def renumber(parent: str, part: str) -> str:
        match = _NUMBERED.fullmatch(part)
        if match is None:
            return part
        return f"{match[1]}_{sorted(numbers[parent, match[1]]).index(int(match[2]))}"

    return ["/".join(renumber("/".join(path[:i]), part) for i, part in enumerate(path)) for path in paths]


def to_original(arrays: FlatParams) -> FlatParams:
    """Rename big_vision's arrays to the names in the first vision_transformer files, which every reader supports."""

    def rename(name: str) -> str:
        if name == "pos_embedding":
            return _ORIGINAL_POSEMB
        if name.startswith("Transformer/encoderblock_"):
            for linen, older in _PRE_LINEN.items():
                name = name.replace(f"/{linen}/", f"/{older}/")
        return name

    return {rename(name): array for name, array in arrays.items()}


# Links.


def links(model: Mapping[str, Any]) -> list[Link]:
    """Return the name table of a complete spec."""
    table = _mixer_links(model["depth"]) if model["type"] == "mixer.Mixer" else _vit_links(model)
    return table + (_dense("head", "head") if model["num_classes"] else [])


def _vit_links(model: Mapping[str, Any]) -> list[Link]:
    table = _dense("embedding", "embed")
    if model["class_token"]:
        table.append(same("cls", "cls"))
    if model["posemb"] == "learn":
        table.append(same("pos_embedding", "posemb/table"))
    if model["stem"]:
        table += [same("conv_root/kernel", "stem/root/kernel"), *norm_links("gn_root", "stem/root_norm")]
        for i, units in enumerate(model["stem"]["stages"]):
            for j in range(units):
                theirs, ours = f"block{i + 1}/unit{j + 1}", f"stem/stage_{i}/unit_{j}"
                for name in ("1", "2", "3") + (("_proj",) if j == 0 else ()):
                    table.append(same(f"{theirs}/conv{name}/kernel", f"{ours}/conv{name}/kernel"))
                    table += norm_links(f"{theirs}/gn{name}", f"{ours}/norm{name}")
    for i in range(model["depth"]):
        theirs, ours = f"Transformer/encoderblock_{i}", f"encoder/block_{i}"
        table += block_links(theirs, ours)
    table += norm_links("Transformer/encoder_norm", "encoder/norm")
    if model["pool"] == "map":
        table += pool_links("MAPHead_0", "pool")
    return table + (_dense("pre_logits", "rep") if model["rep_size"] else [])


def block_links(theirs: str, ours: str) -> list[Link]:
    """Return the name table of an image or text transformer block."""
    table = norm_links(f"{theirs}/LayerNorm_0", f"{ours}/norm1") + norm_links(f"{theirs}/LayerNorm_1", f"{ours}/norm2")
    return table + _attention(theirs, ours) + _mlp(f"{theirs}/MlpBlock_0", f"{ours}/mlp")


def pool_links(theirs: str, ours: str) -> list[Link]:
    """Return the name table of attention pooling."""
    table = [same(f"{theirs}/probe", f"{ours}/probe"), *_attention(theirs, ours)]
    return table + norm_links(f"{theirs}/LayerNorm_0", f"{ours}/norm") + _mlp(f"{theirs}/MlpBlock_0", f"{ours}/mlp")


def _mixer_links(depth: int) -> list[Link]:
    table = _dense("stem", "embed") + norm_links("pre_head_layer_norm", "encoder/norm")
    for i in range(depth):
        theirs, ours = f"MixerBlock_{i}", f"encoder/block_{i}"
        table += norm_links(f"{theirs}/LayerNorm_0", f"{ours}/norm1") + norm_links(
            f"{theirs}/LayerNorm_1", f"{ours}/norm2"
        )
        table += _mlp(f"{theirs}/token_mixing", f"{ours}/tokens") + _mlp(f"{theirs}/channel_mixing", f"{ours}/channels")
    return table


def _attention(theirs: str, ours: str) -> list[Link]:
    names = ("query", "key", "value", "out")
    return [x for n in names for x in _dense(f"{theirs}/MultiHeadDotProductAttention_0/{n}", f"{ours}/attn/{n}")]


def _mlp(theirs: str, ours: str) -> list[Link]:
    return _dense(f"{theirs}/Dense_0", f"{ours}/up") + _dense(f"{theirs}/Dense_1", f"{ours}/down")


def _dense(theirs: str, ours: str) -> list[Link]:
    return [same(f"{theirs}/{leaf}", f"{ours}/{leaf}") for leaf in ("kernel", "bias")]


def norm_links(theirs: str, ours: str) -> list[Link]:
    """Return the name table of a LayerNorm."""
    return [same(f"{theirs}/{leaf}", f"{ours}/{leaf}") for leaf in ("scale", "bias")]


# Writing.


def write(
    path: Path,
    model: Mapping[str, Any],
    params: FlatParams,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> list[str]:
    """Write a new .npz in the original layout, or in big_vision's for attention pooling.

    Fixed and absent position embeddings are written as a learned table with the same values. Returns notes on what the
    file cannot express. Raises UserError, before writing, for a model that the format does not support.
    """
    full = specs.complete(model, FORMAT)
    check(full)
    check_new(path)
    notes = _notes(full, preprocessing, class_names)
    if full["type"] == "vit.ViT":
        if full["posemb"] != "learn" and preprocessing is None:
            raise UserError(
                f"model.posemb={full['posemb']!r} is written as a table, which depends on the image size; evaluate with a "
                'preprocess such as "resize(224)".'
            )
        full, params = specs.with_posemb_table(full, params, preprocessing.size if preprocessing else (0, 0))
        if not full["posemb_prefix"]:  # the original adds its table to all tokens
            params["posemb/table"] = np.pad(params["posemb/table"], ((0, 0), (specs.prefix_tokens(full), 0), (0, 0)))
        patches = params["posemb/table"].shape[1] - specs.prefix_tokens(full)
        if math.isqrt(patches) ** 2 != patches:
            raise UserError(
                f"--to=npz has no place for rows and columns, so its readers expect a square grid of patches; found {patches} "
                "patches: try --to=timm, or --image_size of a square."
            )
    arrays = to_theirs(links(full), params)
    is_map = full.get("pool") == "map"
    save(path, {f"params/{name}": array for name, array in arrays.items()} if is_map else to_original(arrays))
    return notes


def check(model: Mapping[str, Any]) -> None:
    """Raise UserError naming the field that the format does not support."""

    def refuse(field: str, supported: str, alternative: str = "--to=timm may support it") -> None:
        raise UserError(
            f"{FORMAT} cannot represent model.{field}={model[field]!r}; expected {supported}. {alternative}."
        )

    if model["mlp"] == "swiglu":
        refuse("mlp", "GELU")
    if model["type"] == "mixer.Mixer":
        return
    for field, value in FIXED_FIELDS.items():
        if model[field] != value:
            refuse(field, repr(value))
    if model["class_token"] != (model["pool"] == "tok"):
        refuse("class_token", "a class token if and only if pool='tok'")
    if model["stem"] and model["pool"] == "map":
        refuse("stem", "pool='tok' or pool='gap' with it")
    workdir = "--to=workdir supports it"
    if model["stride"] is not None and specs.pair(model["stride"]) != specs.pair(model["patch_size"]):
        refuse("stride", "patches that do not overlap", workdir)
    if model["padding"] != "valid":
        refuse("padding", "'valid'", workdir)
    if model["posemb"] not in ("learn", "none", *get_args(Sincos)):
        refuse("posemb", "'learn', 'sincos2d', 'sincos2d_mae' or 'none'", workdir)


def _notes(
    model: Mapping[str, Any], preprocessing: Preprocessing | None, class_names: tuple[str, ...] | None
) -> list[str]:
    notes = [
        f"Its readers assume {field}={value!r}; set {field}={model[field]!r} there."
        for field, value in CODE.items()
        if model[field] != value
    ]
    stem = model.get("stem") or STEM_CODE
    notes += [
        f"Its readers assume {field}={value!r} in the ResNet; set {field}={stem[field]!r} there."
        for field, value in STEM_CODE.items()
        if stem[field] != value
    ]
    if model.get("pool") == "map":
        notes.append("Attention pooling is written in big_vision's layout, which the original repository cannot read.")
    if model.get("posemb", "learn") != "learn":
        notes.append(f"Its position embeddings, posemb={model['posemb']!r}, are written as a table.")
    if preprocessing:
        notes.append(
            f"The file does not describe the preprocessing: {preprocessing.spec}, mean={preprocessing.mean} and "
            f"std={preprocessing.std}."
        )
        if preprocessing.size[0] != preprocessing.size[1]:
            notes.append(f"Its readers assume square images; this model takes {preprocessing.size}.")
    if class_names:
        notes.append(f"The file does not name its {len(class_names)} classes.")
    return notes


def save(path: Path, arrays: FlatParams) -> None:
    """Write a .npz that appears only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: np.asarray(a, np.float32) for name, a in arrays.items()})
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
