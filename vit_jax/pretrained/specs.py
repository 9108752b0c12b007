"""Model specs as the formats of others take them: every field that decides the numbers, and what follows from them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.pretrained.links import Flat
from vit_jax.types import UserError

_FIELDS: dict[str, dict[str, Any]] = {
    "vit.ViT": {
        **{"stride": None, "padding": "valid", "pool": "tok", "posemb": "learn", "rep_size": None, "stem": None},
        **{
            "mlp": "gelu_tanh",
            "norm_eps": 1e-6,
            "qk_norm": False,
            "qkv_bias": True,
            "layer_scale": None,
            "registers": 0,
        },
        **{"class_token": None, "distilled": False, "posemb_prefix": True, "norm_after_pool": False, "pre_norm": False},
        "embed_bias": True,
    },
    "mixer.Mixer": {"mlp": "gelu_tanh", "norm_eps": 1e-6},
    "resnet.ResNet": {"width": 64, "norm_eps": 1e-6, "weight_norm": "std", "weight_eps": 1e-5},
}


def complete(model: Mapping[str, Any], target: str) -> dict[str, Any]:
    """A spec with its defaults filled in; raises UserError for a network that the format `target` does not have."""
    if model.get("type") not in ("vit.ViT", "mixer.Mixer"):
        raise UserError(
            f"model.type={model.get('type')!r} cannot be written for {target}; it has vit.ViT and mixer.Mixer."
        )
    full = _FIELDS[model["type"]] | dict(model)
    if full.get("stem"):
        if full["stem"].get("type") != "resnet.ResNet":
            raise UserError(f"model.stem.type={full['stem'].get('type')!r} cannot be written for {target}.")
        full["stem"] = _FIELDS["resnet.ResNet"] | dict(full["stem"])
    if model["type"] == "vit.ViT" and full["class_token"] is None:
        full["class_token"] = full["pool"] == "tok"
    return full


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def prefix_tokens(model: Mapping[str, Any]) -> int:
    """How many tokens stand before the patches."""
    return int(model["class_token"]) + int(model["distilled"]) + model["registers"]


def pixels_per_patch(model: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the image that one patch covers."""
    height, width = pair(model["patch_size"])
    if not model.get("stem"):
        return height, width
    # The root halves the image twice, every stage but the first once more.
    scale = 4 * 2 ** max(len(model["stem"]["stages"]) - 1, 0)
    return height * scale, width * scale


def square_side(n: int) -> int | None:
    """The side of a square of n patches, or None where n is no square."""
    side = math.isqrt(max(n, 0))
    return side if side and side * side == n else None


def image_size(model: Mapping[str, Any], params: Flat, target: str) -> tuple[int, int]:
    """(height, width) of the square images that the arrays are for; UserError, for the format `target`, where none are seen."""
    n = 0
    if "posemb/table" in params:
        n = params["posemb/table"].shape[1] - prefix_tokens(model) * model["posemb_prefix"]
    elif model["type"] == "mixer.Mixer":
        n = params["encoder/block_0/tokens/up/kernel"].shape[0]
    side = square_side(n)
    if side is None:
        raise UserError(f"Nothing says the image size of this model, which its config for {target} must state.")
    height, width = pixels_per_patch(model)
    return side * height, side * width


def explicit(model: dict[str, Any], params: Flat, size: tuple[int, int]) -> tuple[dict[str, Any], Flat]:
    """The same ViT with what others have always: position embeddings as a learned table, a bias of zeros where it has none."""
    model, params = dict(model), dict(params)
    if model["posemb"] == "sincos2d":
        from vit_jax.layers.posemb import sincos2d

        height, width = pixels_per_patch(model)
        table = sincos2d(size[0] // height, size[1] // width, model["width"])
        slots = prefix_tokens(model) if model["posemb_prefix"] else 0
        params["posemb/table"] = np.pad(table, ((slots, 0), (0, 0)))[None]
        model["posemb"] = "learn"
    if not model["embed_bias"] and not model["pre_norm"]:
        params["embed/bias"] = np.zeros(model["width"], np.float32)
        model["embed_bias"] = True
    return model, params
