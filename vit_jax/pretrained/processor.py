"""Read and write the preprocessing in transformers' preprocessor_config.json.

The defaults follow transformers 5 (models/*/image_processing_*.py, image_processing_backends.py). Images become (x *
rescale_factor - image_mean) / image_std there, and (x / 255 - mean) / std in this library.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained.pretrained import Interpolation, Preprocessing
from vit_jax.pretrained.tensors import PREPROCESSOR, value_in
from vit_jax.types import UserError

# PIL's codes.
_METHODS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_HALF = (0.5, 0.5, 0.5)
# Mean and std of ImageNet and of CLIP (arXiv:2103.00020, its repository).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_IMAGENET = (MEAN, STD)
_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclasses.dataclass(frozen=True)
class _Defaults:
    """The defaults of an image processor; `size` None means the model's."""

    resample: int
    size: dict[str, int] | None = None
    crop: bool = False
    crop_size: int | None = None
    is_square: bool = True
    mean: tuple[float, ...] = _HALF
    std: tuple[float, ...] = _HALF


_CLIP = _Defaults(3, {"shortest_edge": 224}, True, 224, False, *_COLOURS)
_PROCESSORS = {
    "ViT": _Defaults(2),
    "DeiT": _Defaults(3, {"height": 256, "width": 256}, True, 224),
    "Beit": _Defaults(3, crop_size=224),
    "Siglip": _Defaults(3, is_square=False),
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "DINOv3ViT": _Defaults(2, {"height": 224, "width": 224}, False, None, True, *_IMAGENET),
}
# The default processor of a model whose file does not name one.
_OF_MODELS = {
    **{"vit": "ViT", "deit": "DeiT", "vit_mae": "ViT", "ijepa": "ViT", "beit": "Beit"},
    **{"clip": "CLIP", "siglip": "Siglip"},
    **{"dinov2": "Bit", "dinov2_with_registers": "Bit", "dinov3_vit": "DINOv3ViT"},
}
READ = {
    *("image_processor_type", "feature_extractor_type", "do_resize", "size", "default_to_square", "resample"),
    *("do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
}
# These change neither the pixels of an RGB image nor the common size of a batch's images.
WITHOUT_EFFECT = {
    *(
        "do_convert_rgb",
        "do_pad",
        "do_reduce_labels",
        "reduce_labels",
        "data_format",
        "input_data_format",
        "return_tensors",
    ),
    *("device", "disable_grouping", "processor_class", "auto_map", "transformers_version", "_valid_processor_keys"),
}


def read_preprocessing(
    config: Mapping[str, Any], size: tuple[int, int], channels: int, kind: str, origin: str
) -> tuple[Preprocessing, list[str]]:
    """Convert a preprocessor_config.json for a model of images (height, width); also return notes.

    Raises UserError naming a field that is not supported, or that makes images of another size than the model's.
    """
    file = f"{origin}: its {PREPROCESSOR}"
    name = _name(config, kind, file)
    for key, value in config.items():
        if key not in READ | WITHOUT_EFFECT and value not in (None, False):
            raise UserError(f"{file} has {key}={value!r:.80}, which is not supported; remove it if it has no effect.")
    defaults = _PROCESSORS[name] if config else _Defaults(_PROCESSORS[name].resample)
    resized, keep_ratio, cropped = _geometry(config, defaults, size, file)
    found = cropped or (size if keep_ratio or resized is None else resized)
    if found != size or (keep_ratio and not cropped):
        made = "of many sizes" if keep_ratio and not cropped else f"of {found}"
        raise UserError(
            f"{file} makes images {made} with size={config.get('size')} and crop_size={config.get('crop_size')}, but the model "
            f"takes {size}; correct it, or remove the file."
        )
    code = value_in(config, "resample", int, defaults.resample, file)
    if code not in _METHODS:
        raise UserError(f"{file} has resample={code}; expected PIL's 0 to 5.")
    mean, std = _normalization(config, defaults, channels, file)
    notes = [f"It has no preprocessor_config.json: assumed a resize to {size} and values scaled to [-1, 1]."]
    if not config:
        resized, keep_ratio = size, False
    return Preprocessing(size, resized, _METHODS[code], mean, std, keep_ratio, "transformers"), [] if config else notes


def made_size(config: Mapping[str, Any], size: tuple[int, int], kind: str, origin: str) -> tuple[int, int] | None:
    """Return the (height, width) of images made by a preprocessor_config.json, or None if sizes differ."""
    file = f"{origin}: its {PREPROCESSOR}"
    resized, keep_ratio, cropped = _geometry(config, _PROCESSORS[_name(config, kind, file)], size, file)
    return cropped or (None if keep_ratio or not isinstance(resized, tuple) else resized)


def _name(config: Mapping[str, Any], kind: str, file: str) -> str:
    name = value_in(config, "image_processor_type", str, None, file)
    name = name or value_in(config, "feature_extractor_type", str, _OF_MODELS[kind], file)
    for suffix in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(suffix)
    if name not in _PROCESSORS:
        raise UserError(f"{file} describes a {name}ImageProcessor; expected one of {', '.join(_PROCESSORS)}.")
    return name


def _geometry(
    config: Mapping[str, Any], defaults: _Defaults, size: tuple[int, int], file: str
) -> tuple[int | tuple[int, int] | None, bool, tuple[int, int] | None]:
    """Return the size of the resize, whether it keeps the aspect ratio, and the size of the crop."""
    cropped = None
    if not config:
        return size, False, None
    if value_in(config, "do_center_crop", bool, defaults.crop, file):
        cropped = _height_width(config.get("crop_size"), defaults.crop_size, "crop_size", file)
    if not value_in(config, "do_resize", bool, True, file):
        return None, False, cropped
    stated: Any = config.get("size")
    if stated is None:
        stated = defaults.size or {"height": size[0], "width": size[1]}
    if isinstance(stated, int) and not value_in(config, "default_to_square", bool, defaults.is_square, file):
        stated = {"shortest_edge": stated}
    if isinstance(stated, dict) and set(stated) == {"shortest_edge"}:
        return _height_width(stated["shortest_edge"], None, "size", file)[0], True, cropped
    return _height_width(stated, None, "size", file), False, cropped


def _height_width(stated: Any, default: int | None, key: str, file: str) -> tuple[int, int]:
    """Return (height, width) of a size given as one number, two numbers, or by name."""
    stated = default if stated is None else stated
    edges = [stated.get("height"), stated.get("width")] if isinstance(stated, dict) and len(stated) == 2 else stated
    edges = [edges, edges] if isinstance(edges, int) else edges
    if isinstance(edges, list) and len(edges) == 2 and all(type(edge) is int and edge > 0 for edge in edges):
        return edges[0], edges[1]
    raise UserError(
        f"{file} has {key}={stated!r:.80}; expected a number of pixels, height and width"
        f"{', or shortest_edge' if key == 'size' else ''}."
    )


def _normalization(
    config: Mapping[str, Any], defaults: _Defaults, channels: int, file: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for values in [0, 1]."""
    factor = 1.0
    if value_in(config, "do_rescale", bool, True, file):
        factor = value_in(config, "rescale_factor", float, 1 / 255, file)
    if not factor > 0:
        raise UserError(f"{file} has rescale_factor={factor}; expected a number above 0.")
    mean, std = (0.0,) * channels, (1.0,) * channels
    if value_in(config, "do_normalize", bool, True, file):
        mean, std = (
            value_in(config, key, tuple[float, ...] | float, default if channels == 3 else (0.5,) * channels, file)
            for key, default in (("image_mean", defaults.mean), ("image_std", defaults.std))
        )
        mean, std = ((value,) * channels if isinstance(value, float) else value for value in (mean, std))
    if not 0 < channels == len(mean) == len(std) or min(std) <= 0:
        raise UserError(
            f"{file} has image_mean={mean} and image_std={std} for {channels} channels; expected one number per channel, "
            "image_std above 0."
        )
    unit = 1 if factor == 1 / 255 else 255 * factor  # value of a rescaled white pixel
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def make_config(images: Preprocessing) -> tuple[dict[str, Any], list[str]]:
    """Return the preprocessor_config.json of a preprocessing, and notes on differences."""
    notes = []
    size = {"height": images.size[0], "width": images.size[1]}
    is_cropped = images.keep_ratio or images.resized != images.size
    if images.keep_ratio and not isinstance(images.resized, int):
        notes.append(
            f"transformers cannot express the preprocessing {images.spec!r}, and resizes to {images.size} instead."
        )
        is_cropped, resize = False, size
    elif isinstance(images.resized, int):
        resize = {"shortest_edge": images.resized}
    else:
        height, width = images.resized or images.size
        resize = {"height": height, "width": width}
    if is_cropped and images.rule != "transformers":
        notes.append(
            f"transformers rounds sides and margins down, not as {images.rule} does: its images may be shifted by a pixel, and "
            "probabilities differ."
        )
    return {
        # Older versions of transformers' ViT processor cannot crop; CLIP's is the same with a crop.
        "image_processor_type": "CLIPImageProcessor" if is_cropped else "ViTImageProcessor",
        "do_resize": images.resized is not None,
        "size": resize,
        "do_center_crop": is_cropped,
        **({"crop_size": size} if is_cropped else {}),
        "resample": next(code for code, method in _METHODS.items() if method == images.method),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }, notes
