"""Change the colours or erase part of an image in preprocessing, for grey (1 channel) and RGB images."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from vit_jax.data.decode import MAX_SIDE
from vit_jax.data.transforms import pixels
from vit_jax.data.transforms.ops import Op
from vit_jax.types import UserError

# ImageNet's statistics, in grey levels.
MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)

Change = Callable[[pixels.Picture, np.random.Generator], pixels.Picture]


def on_pictures(name: str, change: Change) -> Op:
    """Convert an operation on Pillow images to one on arrays; `name` is for error messages."""

    def op(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
        _require_grey_or_colour(name, image)
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        changed = change(picture, rng)
        return image if changed is picture else np.asarray(changed).reshape(image.shape)

    return op


def _require_grey_or_colour(name: str, image: UInt8[np.ndarray, "h w c"]) -> None:
    if image.shape[2] not in (1, 3):
        raise UserError(
            f"Found an image of {image.shape[2]} channels, expected 1 (grey) or 3 (RGB) for {name}; "
            f"remove {name} from the preprocessing."
        )


def _check_prob(prob: float) -> None:
    if not 0 <= prob <= 1:
        raise ValueError(f"prob must be from 0 to 1, found {prob}")


def grayscale(prob: float = 0.2) -> Op:
    """Convert to grey, keeping the channels, with probability `prob`."""
    _check_prob(prob)
    return on_pictures("grayscale", lambda picture, rng: pixels.grayscale(picture) if rng.random() < prob else picture)


def color_jitter(
    brightness: float, contrast: float | None = None, saturation: float | None = None, hue: float = 0.0
) -> Op:
    """Multiply brightness, contrast and saturation by uniform factors and shift the hue, in random order.

    Factors are in [1 - x, 1 + x] and at least 0; contrast and saturation default to `brightness`. The hue shifts by a
    fraction of the circle in [-hue, hue]. Equals torchvision's ColorJitter.
    """
    contrast = brightness if contrast is None else contrast
    saturation = brightness if saturation is None else saturation
    if min(brightness, contrast, saturation) < 0:
        found = f"{brightness}, {contrast} and {saturation}"
        raise ValueError(f"brightness, contrast and saturation must be at least 0, found {found}")
    if not 0 <= hue <= 0.5:
        raise ValueError(f"hue must be from 0 to 0.5, found {hue}")
    return on_pictures("color_jitter", _jitter(brightness, contrast, saturation, hue))


def _jitter(brightness: float, contrast: float, saturation: float, hue: float) -> Change:
    factors = {"Brightness": brightness, "Contrast": contrast, "Color": saturation}
    ranges = {name: (max(0.0, 1 - x), 1 + x) for name, x in factors.items() if x}
    ranges |= {"Hue": (-hue, hue)} if hue else {}
    names = list(ranges)

    def change(picture: pixels.Picture, rng: np.random.Generator) -> pixels.Picture:
        for index in rng.permutation(len(names)):
            picture = pixels.TONES[names[index]](picture, rng.uniform(*ranges[names[index]]))
        return picture

    return change


def three_augment(jitter: float = 0.3) -> Op:
    """Apply 3-Augment (arXiv:2204.07118, 3.2): grey, solarize at 128 or blur of radius [0.1, 2], then color jitter.

    The three are equally likely; brightness, contrast and saturation change by factors in [1 - jitter, 1 + jitter].
    """
    if jitter < 0:
        raise ValueError(f"jitter must be at least 0, found {jitter}")
    change_colours = _jitter(jitter, jitter, jitter, 0.0)

    def change(picture: pixels.Picture, rng: np.random.Generator) -> pixels.Picture:
        kind = rng.integers(3)
        if kind == 0:
            picture = pixels.grayscale(picture)
        elif kind == 1:
            picture = pixels.TONES["Solarize"](picture, 128.0)
        else:
            picture = pixels.TONES["GaussianBlur"](picture, rng.uniform(0.1, 2))
        return change_colours(picture, rng)

    return on_pictures("three_augment", change)


def random_erasing(
    prob: float = 0.25,
    area_min: float = 0.02,
    area_max: float = 1 / 3,
    ratio: float = 0.3,
    mode: Literal["pixel", "zero", "mean"] = "pixel",
) -> Op:
    """Overwrite a random rectangle with probability `prob` (arXiv:1708.04896).

    Its fraction of the area is uniform in [area_min, area_max], its height / width log-uniform in [ratio, 1 / ratio]; the
    first of up to 10 draws that fits is used, as in timm. `mode` fills it with normal noise per pixel with ImageNet's
    mean and standard deviation ("pixel"), with black ("zero") or with ImageNet's mean ("mean"). The noise is rounded
    and clipped to uint8, which affects 3 % of it; timm draws it after normalization and does not clip.
    """
    _check_prob(prob)
    if not 0 < area_min <= area_max <= 1:
        raise ValueError(f"expected 0 < area_min <= area_max <= 1, found {area_min} and {area_max}")
    if not 0 < ratio <= 1:
        raise ValueError(f"expected 0 < ratio <= 1, found {ratio}")

    def op(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
        _require_grey_or_colour("random_erasing", image)
        if rng.random() >= prob:
            return image
        height, width, channels = image.shape
        for _ in range(10):
            area = height * width * rng.uniform(area_min, area_max)
            aspect = math.exp(rng.uniform(math.log(ratio), -math.log(ratio)))
            rows, columns = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if rows < height and columns < width:
                top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
                erased = image.copy()  # the image may belong to the cache
                patch = _patch(mode, (rows, columns, channels), rng)
                erased[top : top + rows, left : left + columns] = patch.clip(0, 255).round()
                return erased
        return image

    return op


def _patch(mode: str, shape: tuple[int, int, int], rng: np.random.Generator) -> Float32[np.ndarray, "h w c"]:
    """Return the fill of a rectangle; for grey images, mean and standard deviation are averaged over the colours."""
    if mode == "zero":
        return np.zeros(shape, np.float32)
    mean, std = (MEAN, STD) if shape[2] == 3 else (MEAN.mean(), STD.mean())
    if mode == "mean":
        return np.broadcast_to(mean, shape)
    return mean + std * rng.standard_normal(shape, np.float32)


def gaussian_blur(radius_min: float = 0.1, radius_max: float = 2.0) -> Op:
    """Blur with a standard deviation in pixels uniform in [radius_min, radius_max]."""
    if not 0 <= radius_min <= radius_max <= MAX_SIDE:
        raise ValueError(f"expected 0 <= radius_min <= radius_max <= {MAX_SIDE}, found {radius_min} and {radius_max}")
    return on_pictures(
        "gaussian_blur",
        lambda picture, rng: pixels.TONES["GaussianBlur"](picture, rng.uniform(radius_min, radius_max)),
    )


def solarize(threshold: int = 128) -> Op:
    """Invert values that are at least the threshold."""
    return on_pictures("solarize", lambda picture, rng: pixels.TONES["Solarize"](picture, float(threshold)))
