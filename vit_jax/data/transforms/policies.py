"""Apply RandAugment and AutoAugment to grey (1 channel) and RGB images."""

from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from vit_jax.data.transforms import levels, pixels, subpolicies
from vit_jax.data.transforms.augment import on_pictures
from vit_jax.data.transforms.ops import Op
from vit_jax.types import Count

# In big_vision's order.
RANDAUG = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
)  # fmt: skip
METHODS = {
    "nearest": (Image.Resampling.NEAREST,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
GREY = (128, 128, 128)
IMAGENET_MEAN = (124, 116, 104)
CIFAR10_MEAN = (125, 123, 114)


class Dialect(NamedTuple):
    """Levels, fill colour outside the image and interpolation methods of one code base."""

    levels: levels.Levels
    fill: pixels.Colour
    methods: tuple[Image.Resampling, ...]

    def apply(self, name: str, level: float, picture: pixels.Picture, rng: np.random.Generator) -> pixels.Picture:
        """Apply an operation with random sign, position and interpolation."""
        operation, value_at = self.levels[name]
        value = value_at(level, 1 if rng.random() < 0.5 else -1)
        if operation == "Cutout":
            centre = int(rng.integers(picture.width)), int(rng.integers(picture.height))
            return pixels.cutout(picture, int(value), centre, self.fill)
        return pixels.apply(operation, picture, value, self.fill, self.methods[rng.integers(len(self.methods))])


def randaug(layers: Count = 2, magnitude: float = 10.0, relative: bool = False) -> Op:
    """Apply RandAugment (arXiv:1909.13719) as in big_vision: `layers` of 16 operations, all at level `magnitude`.

    Levels follow the TensorFlow code, from 0 (not the identity: Color and Brightness have factor 0.1) to beyond 10. The
    fill is grey 128. Shifts and the square of Cutout are in pixels, 100 and 80 at level 10, which suits images of 224
    pixels; smaller ones may turn completely grey. `relative` scales them with the shorter side, relative to 224 pixels.
    """
    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude must be from 0 to 30, found {magnitude}")
    dialect = Dialect(levels.tensorflow(translate=100.0), GREY, METHODS["nearest"])

    def change(picture: pixels.Picture, rng: np.random.Generator) -> pixels.Picture:
        scaled = dialect._replace(levels=levels.tensorflow(100.0, min(picture.size) / 224)) if relative else dialect
        for index in rng.integers(len(RANDAUG), size=layers):
            picture = scaled.apply(RANDAUG[index], magnitude, picture, rng)
        return picture

    return on_pictures("randaug", change)


def rand_augment(
    magnitude: float = 9.0,
    std: float = 0.5,
    increasing: bool = True,
    layers: Count = 2,
    method: Literal["random", "bilinear", "bicubic"] = "random",
) -> Op:
    """Apply RandAugment as in timm: `layers` of 15 operations, each with probability 1/2, at random levels.

    Levels are normal with mean `magnitude` and standard deviation `std`, clipped to [0, 10]; the defaults are timm's
    rand-m9-mstd0.5-inc1. If `increasing`, a higher level never changes an image less. The fill is ImageNet's mean;
    `method` is the interpolation; "random" draws one of the other two each time. DeiT uses "bicubic".
    """
    if not 0 <= magnitude <= 10:
        raise ValueError(f"magnitude must be from 0 to 10, found {magnitude}")
    if std < 0:
        raise ValueError(f"std must be at least 0, found {std}")
    dialect = Dialect(levels.timm(increasing), IMAGENET_MEAN, METHODS[method])
    names = list(dialect.levels)

    def change(picture: pixels.Picture, rng: np.random.Generator) -> pixels.Picture:
        for index in rng.integers(len(names), size=layers):
            if rng.random() < 0.5:
                level = min(10.0, max(0.0, rng.normal(magnitude, std)))
                picture = dialect.apply(names[index], level, picture, rng)
        return picture

    return on_pictures("rand_augment", change)


def autoaugment(policy: Literal["v0", "original", "cifar10"] = "v0") -> Op:
    """Apply AutoAugment (arXiv:1805.09501): one of 25 pairs of operations, each with its own probability and level.

    "v0" is the TensorFlow code's ImageNet policy, as in big_vision; shifts are in pixels, 225 in one pair. "original" is
    the paper's ImageNet policy, interpreted as in timm. "cifar10" is the paper's CIFAR-10 policy for 32 x 32 pixels; its
    fill is the mean of CIFAR-10.
    """
    pairs, dialect = {
        "v0": (subpolicies.V0, Dialect(levels.tensorflow(translate=250.0), GREY, METHODS["nearest"])),
        "original": (subpolicies.ORIGINAL, Dialect(levels.original(), IMAGENET_MEAN, METHODS["random"])),
        "cifar10": (subpolicies.CIFAR10, Dialect(levels.cifar10(), CIFAR10_MEAN, METHODS["nearest"])),
    }[policy]

    def change(picture: pixels.Picture, rng: np.random.Generator) -> pixels.Picture:
        for name, prob, level in pairs[rng.integers(len(pairs))]:
            if rng.random() < prob:
                picture = dialect.apply(name, float(level), picture, rng)
        return picture

    return on_pictures("autoaugment", change)
