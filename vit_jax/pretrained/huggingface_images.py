"""How images are prepared, between transformers' preprocessor_config.json and ours."""

from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained.preprocessing import Method, Preprocessing
from vit_jax.pretrained.timm_config import take
from vit_jax.types import UserError

# PIL's numbers.
_METHODS: dict[int, Method] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def preprocessing(
    stated: Mapping[str, Any], size: tuple[int, int], channels: int, kind: str, origin: str
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing of a preprocessor_config.json for images of (height, width); its processors' defaults, and notes."""
    notes = []
    if not stated:
        notes = [f"There is no preprocessor_config.json: assumed a resize to {size} and values scaled to [-1, 1]."]
    code = take(stated, "resample", int, 3 if kind == "deit" else 2, origin)
    if code not in _METHODS:
        raise UserError(f"{origin}: its preprocessor_config.json has resample={code}; expected PIL's 0 to 5.")
    mean, std = ((0.5,) * channels for _ in range(2))
    if take(stated, "do_normalize", bool, True, origin):
        mean = take(stated, "image_mean", tuple[float, ...], mean, origin)
        std = take(stated, "image_std", tuple[float, ...], std, origin)
    else:
        mean, std = (0.0,) * channels, (1.0,) * channels
    if not 0 < channels == len(mean) == len(std) or min(std) <= 0:
        raise UserError(
            f"{origin} has {channels} channels, but image_mean={mean} and image_std={std} in its preprocessor_config.json; "
            "expected a number for each, image_std above 0."
        )
    resized = _edges(stated.get("size"), size)
    short_side = None
    if take(stated, "do_center_crop", bool, False, origin):
        short_side = max(min(resized), min(size))  # theirs pads what is smaller than the crop
        cropped = _edges(stated.get("crop_size"), size)
        if cropped != size:
            notes.append(f"Its preprocessor_config.json cuts images to {cropped}, but the model is for {size}.")
        if not isinstance(stated.get("size"), dict) or "shortest_edge" not in stated["size"]:
            notes.append(f"transformers squashes images to {resized} before it cuts; here the shorter side is resized.")
    elif resized != size:
        notes.append(f"Its preprocessor_config.json resizes images to {resized}, but the model is for {size}.")
    return Preprocessing(size, short_side, _METHODS[code], mean, std), notes


def _edges(stated: Any, default: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size of transformers."""
    if isinstance(stated, dict) and "shortest_edge" in stated:
        stated = stated["shortest_edge"]
    if isinstance(stated, dict):
        stated = [stated.get("height"), stated.get("width")]
    edges = [stated, stated] if isinstance(stated, int) else stated
    if isinstance(edges, list) and len(edges) == 2 and all(isinstance(edge, int) and edge > 0 for edge in edges):
        return edges[0], edges[1]
    return default


def describe(images: Preprocessing) -> dict[str, Any]:
    """The preprocessor_config.json of a preprocessing."""
    size = {"height": images.size[0], "width": images.size[1]}
    code = next(number for number, method in _METHODS.items() if method == images.method)
    cut: dict[str, Any] = {"size": size, "do_center_crop": False}
    if images.short_side is not None:
        cut = {"size": {"shortest_edge": images.short_side}, "crop_size": size, "do_center_crop": True}
    # transformers' ViT processor has no crop in older versions; CLIP's is the same with one.
    kind = "ViTImageProcessor" if images.short_side is None else "CLIPImageProcessor"
    return {
        "image_processor_type": kind,
        "do_resize": True,
        **cut,
        "resample": code,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
