"""Apply the 15 common image corruptions at severities 1 to 5 (arXiv:1903.12261, section 4).

Parameters are taken from the code of ImageNet-C or, for a shorter side below 64 pixels, CIFAR-10-C. Functions take
float64 images [h, w, c] with values in [0, 1]; c is 1 or 3. ImageMagick's motion blur is implemented as a sum of
shifts.
"""

import difflib
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from vit_jax.evals.corruptions.blurs import (
    ByteImage,
    FloatImage,
    Plane,
    defocus_blur,
    glass_blur,
    motion_blur,
    to_bytes,
    zoom_blur,
)
from vit_jax.evals.corruptions.weather import SMALL, fog, frost, snow
from vit_jax.types import UserError

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image: ByteImage, kind: str, severity: int, rng: np.random.Generator) -> ByteImage:
    """Corrupt an image, drawing random numbers from `rng`.

    Raises UserError for an unknown kind or severity, and for frost if its photographs are missing.
    """
    check([kind], [severity])
    function, large, small = KINDS[kind]
    level = (small if min(image.shape[:2]) < SMALL else large)[severity - 1]
    return to_bytes(function(image / 255, rng, *(level if isinstance(level, tuple) else (level,))))


def check(kinds: Sequence[str], severities: Sequence[int]) -> None:
    """Raise UserError for an unknown kind, with close matches, or severity."""
    for kind in kinds:
        if kind not in KINDS:
            near = difflib.get_close_matches(str(kind), KINDS, n=3, cutoff=0.5)
            advice = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(KINDS)}."
            raise UserError(f"Unknown corruption {kind!r}; {advice}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"Unknown severity {severity!r}; choose from 1 (mild) to 5 (strong).")


def _to_pillow(image: FloatImage) -> Image.Image:
    levels = to_bytes(image)
    return Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)


def _from_pillow(image: Image.Image) -> FloatImage:
    levels = np.asarray(image)
    return (levels if levels.ndim == 3 else levels[:, :, None]) / 255


def _gaussian_noise(image: FloatImage, rng: np.random.Generator, scale: float) -> FloatImage:
    return image + rng.normal(0, scale, image.shape)


def _shot_noise(image: FloatImage, rng: np.random.Generator, photons: float) -> FloatImage:
    return rng.poisson(image * photons) / photons


def _impulse_noise(image: FloatImage, rng: np.random.Generator, fraction: float) -> FloatImage:
    replaced, white = rng.random(image.shape) <= fraction, rng.random(image.shape) <= 0.5
    return np.where(replaced, white, image)


def _brightness(image: FloatImage, rng: np.random.Generator, amount: float) -> FloatImage:
    """Add `amount` to HSV's value, the largest channel, keeping hue and saturation."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, image * brighter / np.maximum(value, 1 / 255), brighter)


def _contrast(image: FloatImage, rng: np.random.Generator, factor: float) -> FloatImage:
    means = image.mean(axis=(0, 1), keepdims=True)
    return (image - means) * factor + means


@functools.lru_cache(maxsize=16)
def _smoothing_matrix(length: int, sigma: float) -> Plane:
    """Return Gaussian smoothing of an axis as a matrix; its kernel may be wider than the image."""
    if sigma == 0:
        return np.eye(length)
    return ndimage.gaussian_filter1d(np.eye(length), sigma, axis=0, mode="reflect", truncate=3)


def _elastic_transform(
    image: FloatImage, rng: np.random.Generator, amount: float, sigma: float, affine: float
) -> FloatImage:
    """Apply a random affine map and smooth random shifts; parameters are fractions of the shorter side."""
    height, width = image.shape[:2]
    side = min(height, width)
    middle, arm = np.array([width // 2, height // 2]), side // 3
    before = middle + np.array([[arm, arm], [arm, -arm], [-arm, -arm]])  # (x, y)
    after = before + rng.uniform(-affine * side, affine * side, (3, 2))
    back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before).T  # (x, y, 1) -> input position
    dx, dy = (
        amount
        * side
        * (
            _smoothing_matrix(height, sigma * side)
            @ rng.uniform(-1, 1, (height, width))
            @ _smoothing_matrix(width, sigma * side).T
        )
        for _ in "xy"
    )
    rows, columns = np.mgrid[:height, :width]
    planes = []
    for plane in np.moveaxis(image, 2, 0):
        plane = ndimage.affine_transform(plane, back[::-1][:, [1, 0, 2]], order=1, mode="mirror")
        planes.append(ndimage.map_coordinates(plane, (rows + dy, columns + dx), order=1, mode="reflect"))
    return np.stack(planes, axis=2)


def _pixelate(image: FloatImage, rng: np.random.Generator, scale: float) -> FloatImage:
    full = _to_pillow(image)
    small = full.resize((max(int(full.width * scale), 1), max(int(full.height * scale), 1)), Image.Resampling.BOX)
    return _from_pillow(small.resize(full.size, Image.Resampling.BOX))


def _jpeg_compression(image: FloatImage, rng: np.random.Generator, quality: int) -> FloatImage:
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=quality)
    return _from_pillow(Image.open(file))


# Functions and their arguments at each severity: first ImageNet-C's, then CIFAR-10-C's.
KINDS: dict[str, tuple[Callable[..., FloatImage], tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.1)),
    "shot_noise": (_shot_noise, (60.0, 25.0, 12.0, 5.0, 3.0), (500.0, 250.0, 100.0, 75.0, 50.0)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (
        defocus_blur,
        ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": (
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (
        motion_blur,
        ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
        ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    ),
    "zoom_blur": (
        zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": (
        snow,
        (
            (0.1, 0.3, 3.0, 0.5, 10.0, 4.0, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12.0, 4.0, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12.0, 8.0, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12.0, 8.0, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12.0, 12.0, 0.55),
        ),
        (
            (0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8),
        ),
    ),
    "frost": (
        frost,
        ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": (
        fog,
        ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    ),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    # Fractions of the shorter side; ImageNet-C's lengths assume 244 pixels but were used for 224.
    "elastic_transform": (
        _elastic_transform,
        tuple(
            tuple(244 / 224 * fraction for fraction in level)
            for level in ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
