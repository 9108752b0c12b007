"""Complete model specs for the formats, and derive quantities from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.pretrained.pretrained import FlatParams
from vit_jax.types import UserError

# Defaults of every field that affects the outputs; a test compares them with the modules' defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit.ViT": {
        "stride": None,
        "padding": "valid",
        "pool": "tok",
        "posemb": "learn",
        "posemb_grid": None,
        "rep_size": None,
        "stem": None,
        "mlp": "gelu_tanh",
        "norm_eps": 1e-6,
        "qk_norm": False,
        "qkv_bias": True,
        "layer_scale": None,
        "registers": 0,
        "class_token": None,
        "distilled": False,
        "posemb_prefix": True,
        "norm_after_pool": False,
        "pre_norm": False,
        "embed_bias": True,
        "mask_token": False,
        "rope": None,
        "relative_bias": "none",
        "post_norm": False,
        "attn_norm": False,
        "mlp_norm": False,
    },
    "mixer.Mixer": {"mlp": "gelu_tanh", "norm_eps": 1e-6},
    "resnet.ResNet": {"width": 64, "norm_eps": 1e-6, "weight_norm": "std", "weight_eps": 1e-5},
}


def complete(model: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Fill in the defaults of a spec; raises UserError if the format `target` does not support the network."""
    if model.get("type") not in ("vit.ViT", "mixer.Mixer"):
        raise UserError(f"{target} cannot represent model.type={model.get('type')!r}; expected vit.ViT or mixer.Mixer.")
    full = DEFAULTS[model["type"]] | dict(model)
    if full.get("stem"):
        if full["stem"].get("type") != "resnet.ResNet":
            raise UserError(
                f"{target} cannot represent model.stem.type={full['stem'].get('type')!r}; expected resnet.ResNet."
            )
        full["stem"] = DEFAULTS["resnet.ResNet"] | dict(full["stem"])
    if model["type"] == "vit.ViT" and full["class_token"] is None:
        full["class_token"] = full["pool"] == "tok"
    return full


def label_fields(class_names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of transformers' config.json that name the classes."""
    names = list(class_names)
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def label_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Return the class names in a transformers config.json; a class without a name gets its number."""
    labels = config.get("id2label") or {}
    return tuple(str(labels.get(str(i), labels.get(i, i))) for i in range(classes))


def pair(size: Any) -> tuple[int, int]:
    """Return (height, width) of a size given as one or two numbers."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def int_or_pair(height: int, width: int) -> int | tuple[int, int]:
    """Return one number for a square size, else (height, width)."""
    return height if height == width else (height, width)


def prefix_tokens(model: Mapping[str, Any]) -> int:
    """Count the tokens before the patches: class token, distillation token and registers."""
    return int(model["class_token"]) + int(model["distilled"]) + model["registers"]


def pixels_per_patch(model: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows and columns of pixels that one patch covers."""
    height, width = pair(model["patch_size"])
    if not model.get("stem"):
        return height, width
    # The root downsamples by 4, every stage except the first by 2.
    scale = 4 * 2 ** max(len(model["stem"]["stages"]) - 1, 0)
    return height * scale, width * scale


def grid_of(model: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of patches of an image of (height, width)."""
    height, width = pixels_per_patch(model)
    return size[0] // height, size[1] // width


def num_patches(model: Mapping[str, Any], size: tuple[int, int]) -> int:
    """Count the patches of an image of (height, width)."""
    return math.prod(grid_of(model, size))


def square_side(n: int) -> int | None:
    """Return the side of a square of n patches, or None if n is not a square."""
    side = math.isqrt(max(n, 0))
    return side if side and side * side == n else None


def image_size(model: Mapping[str, Any], params: FlatParams, target: str) -> tuple[int, int]:
    """Infer (height, width) of square images from the parameters; raises UserError if they do not determine it."""
    n = 0
    if "posemb/table" in params:
        n = params["posemb/table"].shape[1] - prefix_tokens(model) * model["posemb_prefix"]
    elif model["type"] == "mixer.Mixer":
        n = params["encoder/block_0/tokens/up/kernel"].shape[0]
    side = square_side(n)
    if side is None:
        raise UserError(
            f"The image size of this model is unknown, and its config for {target} must state it; evaluate with a preprocess "
            'such as "resize(224)".'
        )
    height, width = pixels_per_patch(model)
    return side * height, side * width


def with_posemb_table(
    model: Mapping[str, Any], params: FlatParams, size: tuple[int, int]
) -> tuple[dict[str, Any], FlatParams]:
    """Replace sincos2d or absent position embeddings with an equal learned table, for images of `size`."""
    from vit_jax.layers.posemb import sincos2d

    if model["posemb"] == "learn":
        return dict(model), dict(params)
    grid = grid_of(model, size)
    table = np.zeros((math.prod(grid), model["width"]), np.float32)
    if model["posemb"] != "none":
        table = sincos2d(*grid, model["width"], kind=model["posemb"])
    slots = prefix_tokens(model) if model["posemb_prefix"] else 0
    table = np.pad(table, ((slots, 0), (0, 0)))[None]
    return dict(model) | {"posemb": "learn"}, params | {"posemb/table": table}


def with_embed_bias(model: Mapping[str, Any], params: FlatParams) -> tuple[dict[str, Any], FlatParams]:
    """Add a zero bias to a patch embedding without one, unless a normalization follows it."""
    if model["embed_bias"] or model["pre_norm"]:
        return dict(model), dict(params)
    return dict(model) | {"embed_bias": True}, params | {"embed/bias": np.zeros(model["width"], np.float32)}


def has_bias(model: Mapping[str, Any], name: str) -> bool:
    """Return whether the projection to queries, keys or values has a bias."""
    return name != "key" if model["qkv_bias"] == "qv" else model["qkv_bias"]


def dinov2_hidden(width: int, ratio: int, swiglu: bool) -> int:
    """Return the hidden width of DINOv2's MLP: two thirds for SwiGLU, rounded up to a multiple of 8."""
    return (int(width * ratio * 2 / 3) + 7) // 8 * 8 if swiglu else width * ratio


def dinov2_ratio(model: Mapping[str, Any]) -> int | None:
    """Return the mlp_ratio that gives DINOv2 the hidden width of a complete spec, or None."""
    sizes = (model["width"], model["mlp"] == "swiglu")
    return next((r for r in range(1, 17) if dinov2_hidden(sizes[0], r, sizes[1]) == model["mlp_dim"]), None)
