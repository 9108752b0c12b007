"""Google's .npz files: google-research/vision_transformer (ViT, AugReg, SAM, GSAM, hybrids, Mixer, LiT) and big_vision."""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained.google_export import CODE, FORMAT, STEM_CODE, write
from vit_jax.pretrained.google_layouts import ORIGINAL_POSITIONS, model_branch, to_big_vision
from vit_jax.pretrained.google_links import links
from vit_jax.pretrained.links import Flat, to_ours
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.pretrained import Pretrained
from vit_jax.pretrained.specs import complete, pixels_per_patch, square_side
from vit_jax.types import UserError

__all__ = ["fits", "links", "read", "write"]

_BLOCK, _MIXER_BLOCK = r"Transformer/encoderblock_(\d+)/", r"MixerBlock_(\d+)/"


def fits(arrays: Flat, config: Mapping[str, Any]) -> bool:
    """Whether the arrays are named as Google's models name theirs."""
    return any("Transformer/encoderblock" in name or "MixerBlock_0/" in name for name in arrays)


def read(arrays: Flat, config: Mapping[str, Any], origin: str) -> Pretrained:
    """A Google .npz as ours; raises UserError for one that holds no ViT, hybrid or Mixer of images."""
    inside, branch, others = model_branch(arrays)
    theirs = to_big_vision(inside)
    is_mixer = any(re.match(_MIXER_BLOCK, name) for name in theirs)
    model, patches = (_mixer_spec if is_mixer else _vit_spec)(theirs, origin)
    pixels = theirs["stem/kernel"] if is_mixer else theirs.get("conv_root/kernel", theirs["embedding/kernel"])
    params = to_ours(links(complete(model, FORMAT)), theirs, origin)

    notes = [
        "The file holds arrays alone: GELU is taken by its tanh approximation and the epsilon of LayerNorm as 1e-6, as in the "
        "code of these models."
    ]
    if others:
        notes.append(f"Left out of the file: {', '.join(others)}.")
    if "stem" in model:
        notes.append(
            "Its ResNet standardises weights by std + 1e-5 and has GroupNorms with epsilon 1e-6, as in that code."
        )
    if model.get("pool") == "gap":
        notes.append("It has neither a class token nor a pooling head: the mean of the patches is taken.")
    if model.get("posemb") == "sincos2d":
        notes.append(
            "It has no position embeddings: sincos2d is taken, as big_vision has it, and images of 224 pixels."
        )
    notes += _class_notes(model["num_classes"], branch)
    is_original = ORIGINAL_POSITIONS in inside or "stem/kernel" in arrays
    preprocessing, note = _preprocessing(model, patches, pixels.shape[2], is_original)
    return Pretrained(model, params, preprocessing, None, origin, notes=(*notes, note))


def _class_notes(classes: int, branch: str) -> list[str]:
    if classes and branch.endswith("img/"):
        return [f"Its head maps to the {classes} dimensions that image and text share, not to classes."]
    known = {1000: "ImageNet", 21843: "ImageNet-21k"}
    order = f": probably those of {known[classes]}, in the order of their WordNet ids" if classes in known else ""
    return [f"The file does not name its {classes} classes{order}."] if classes else []


def _preprocessing(
    model: Mapping[str, Any], patches: int | None, channels: int, is_original: bool
) -> tuple[Preprocessing, str]:
    """How its authors evaluate it, and a note that says so.

    The original squashes (input_pipeline.py); so does big_vision for image and text (siglip_lit_coco.py), but for classes it
    takes the middle (configs/vit_i1k.py and mlp_mixer_i1k.py: resize_small(256)|central_crop(224), by areas).
    """
    side = square_side(patches) if patches else None
    rows, cols = pixels_per_patch(model)
    size = (side * rows, side * cols) if side else (224, 224)
    half = (0.5,) * channels
    if is_original or not model["num_classes"] or model.get("pool") == "map":
        prepared = Preprocessing(size, None, "bilinear", half, half)
    else:
        prepared = Preprocessing(size, round(min(size) * 8 / 7), "box", half, half)
    authors = "the original repository" if is_original else "big_vision"
    return prepared, (
        f"The file does not say how images are prepared: {prepared.spec} is taken, and values in [-1, 1], as {authors} does."
    )


def _vit_spec(theirs: Flat, origin: str) -> tuple[dict[str, Any], int | None]:
    """The spec, and how many patches its position embeddings are for."""
    height, across, _, width = _shape(theirs, "embedding/kernel", 4, origin)
    _, heads, _ = _shape(theirs, "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel", 3, origin)
    pool = "tok" if "cls" in theirs else "map" if "MAPHead_0/probe" in theirs else "gap"
    model: dict[str, Any] = {
        "type": "vit.ViT",
        "num_classes": _outputs(theirs, "head/kernel", origin),
        "width": width,
        "depth": _count(theirs, _BLOCK),
        "mlp_dim": _shape(theirs, "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", 2, origin)[1],
        "num_heads": heads,
        "patch_size": height if height == across else [height, across],
        "pool": pool,
        "posemb": "learn" if "pos_embedding" in theirs else "sincos2d",
        **CODE,
    }
    if rep_size := _outputs(theirs, "pre_logits/kernel", origin):
        model["rep_size"] = rep_size
    if "conv_root/kernel" in theirs:
        stages = range(1, 1 + _count(theirs, r"block(\d+)/", first=1))
        units = [_count(theirs, rf"block{stage}/unit(\d+)/", first=1) for stage in stages]
        root_width = _shape(theirs, "conv_root/kernel", 4, origin)[3]
        model["stem"] = {"type": "resnet.ResNet", "stages": units, "width": root_width, **STEM_CODE}
    if model["posemb"] == "sincos2d":
        return model, None
    _, n, _ = _shape(theirs, "pos_embedding", 3, origin)
    has_slot = pool == "tok" and square_side(n - 1) is not None
    if pool == "tok" and not has_slot:
        model["posemb_prefix"] = False
    patches = n - has_slot
    if square_side(patches) is None:
        raise UserError(f"{origin} has {n} position embeddings; expected those of a square of patches.")
    return model, patches


def _mixer_spec(theirs: Flat, origin: str) -> tuple[dict[str, Any], int | None]:
    """The spec, and how many patches the model is for."""
    height, across, _, width = _shape(theirs, "stem/kernel", 4, origin)
    patches, tokens_mlp_dim = _shape(theirs, "MixerBlock_0/token_mixing/Dense_0/kernel", 2, origin)
    if square_side(patches) is None:
        raise UserError(f"{origin} mixes {patches} patches; expected a square of patches.")
    return {
        "type": "mixer.Mixer",
        "num_classes": _outputs(theirs, "head/kernel", origin),
        "width": width,
        "depth": _count(theirs, _MIXER_BLOCK),
        "tokens_mlp_dim": tokens_mlp_dim,
        "channels_mlp_dim": _shape(theirs, "MixerBlock_0/channel_mixing/Dense_0/kernel", 2, origin)[1],
        "patch_size": height if height == across else [height, across],
        **CODE,
    }, patches


def _shape(arrays: Flat, name: str, rank: int, origin: str) -> tuple[int, ...]:
    if name not in arrays:
        raise UserError(f"{origin} has no {name}; expected a ViT, hybrid or Mixer as Google's repositories save it.")
    if arrays[name].ndim != rank:
        raise UserError(f"{origin} has {name} of shape {arrays[name].shape}; expected {rank} axes.")
    return arrays[name].shape


def _outputs(arrays: Flat, name: str, origin: str) -> int:
    """The width that a dense layer gives, 0 where there is none."""
    return _shape(arrays, name, 2, origin)[1] if name in arrays else 0


def _count(arrays: Flat, pattern: str, first: int = 0) -> int:
    """How many modules there are, by the largest number; those missing in between are missed by `to_ours`."""
    return max((int(m[1]) - first + 1 for name in arrays if (m := re.match(pattern, name))), default=0)
