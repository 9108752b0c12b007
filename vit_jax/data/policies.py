"""Preprocessing operations that draw from a set of image operations: RandAugment."""

import numpy as np
from PIL import Image

from vit_jax.data import levels, pixels
from vit_jax.data.augment import on_pictures
from vit_jax.data.ops import Op

# In the order of big_vision.
RANDAUG = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
)  # fmt: skip
GREY = (128, 128, 128)
NEAREST = (Image.Resampling.NEAREST,)


def randaug(layers: int = 2, magnitude: float = 10.0) -> Op:
    """RandAugment (arXiv:1909.13719) as big_vision has it: `layers` of 16 operations, all at level `magnitude`.

    Levels are those of the TensorFlow code, from 0 (which is not nothing: Color and Brightness at 0.1) past 10; what
    comes into view is grey 128. Shifts and the square of Cutout are in pixels, up to 100 and 80 at level 10.
    """
    _check_layers(layers)
    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude must be from 0 to 30, found {magnitude}")
    table = levels.tensorflow(translate=100.0)

    def change(picture: pixels.Picture, rng: np.random.Generator) -> pixels.Picture:
        for index in rng.integers(len(RANDAUG), size=layers):
            picture = _at_level(table, RANDAUG[index], magnitude, picture, rng, GREY, NEAREST)
        return picture

    return on_pictures("randaug", change)


def _check_layers(layers: int) -> None:
    if layers < 1:
        raise ValueError(f"layers must be at least 1, found {layers}")


def _at_level(
    table: levels.Levels,
    name: str,
    level: float,
    picture: pixels.Picture,
    rng: np.random.Generator,
    fill: pixels.Colour,
    methods: tuple[Image.Resampling, ...],
) -> pixels.Picture:
    """Applies one operation of a table, with its sign, its place and one of the methods of resampling drawn."""
    operation, level_to_value = table[name]
    value = level_to_value(level, 1 if rng.random() < 0.5 else -1)
    if operation == "Cutout":
        centre = int(rng.integers(picture.width)), int(rng.integers(picture.height))
        return pixels.cutout(picture, int(value), centre, fill)
    return pixels.apply(operation, picture, value, fill, methods[rng.integers(len(methods))])
