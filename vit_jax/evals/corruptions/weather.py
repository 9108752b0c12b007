"""Apply the weather of vit_jax.evals.corruptions.kinds: snow, frost and fog."""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vit_jax.evals.corruptions.blurs import ByteImage, FloatImage, Plane, line_blur, magnify
from vit_jax.types import UserError

GREY = np.array([0.299, 0.587, 0.114])
SMALL = 64  # images with a shorter side get CIFAR-10-C's corruptions


def _grey(image: FloatImage) -> Float[np.ndarray, "h w 1"]:
    return image if image.shape[2] == 1 else (image @ GREY)[:, :, None]


def snow(image: FloatImage, rng: np.random.Generator, *level: float) -> FloatImage:
    """Whiten the image and add motion-blurred flakes, together with the same flakes rotated by 180 degrees."""
    mean, scale, zoom, threshold, radius, sigma, kept = level
    flakes = magnify(rng.normal(mean, scale, (*image.shape[:2], 1)), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = line_blur(flakes, int(radius), sigma, rng.uniform(-135, -45))
    whiter = np.maximum(image, _grey(image) * 1.5 + 0.5)
    return kept * image + (1 - kept) * whiter + flakes + flakes[::-1, ::-1]


@functools.cache
def frost_pictures() -> tuple[ByteImage, ...]:
    """Load ImageNet-C's photographs of frost from the PyPI package imagecorruptions."""
    spec = importlib.util.find_spec("imagecorruptions")  # importing it fails with current setuptools
    folders = [Path(place) / "frost" for place in (spec and spec.submodule_search_locations) or ()]
    # The benchmark's code never draws the sixth photograph.
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    files = [folder / name for folder in folders[:1] for name in names]
    if not files or not all(file.exists() for file in files):
        raise UserError(
            "The photographs of frost are missing; run `pip install --no-deps imagecorruptions==1.1.2`, or leave out frost."
        )
    return tuple(np.asarray(Image.open(file).convert("RGB")) for file in files)


def blend_frost(
    image: FloatImage,
    photograph: UInt8[np.ndarray, "h2 w2 3"],
    rng: np.random.Generator,
    of_image: float,
    of_frost: float,
) -> FloatImage:
    """Return the weighted sum of an image and a random crop of a photograph, enlarged if it is smaller than the image."""
    height, width = image.shape[:2]
    if min(height, width) < SMALL:
        photograph = photograph[2::5, 2::5]  # equals bilinear downsampling by 5
    scale = max(height / photograph.shape[0], width / photograph.shape[1])
    if scale > 1:
        size = math.ceil(photograph.shape[1] * scale), math.ceil(photograph.shape[0] * scale)
        photograph = np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BICUBIC))
    top = rng.integers(photograph.shape[0] - height + 1)
    left = rng.integers(photograph.shape[1] - width + 1)
    window = photograph[top : top + height, left : left + width] / 255
    return of_image * image + of_frost * (_grey(window) if image.shape[2] == 1 else window)


def frost(image: FloatImage, rng: np.random.Generator, of_image: float, of_frost: float) -> FloatImage:
    """Blend with a random photograph of frost; raises UserError if the photographs are missing."""
    pictures = frost_pictures()
    return blend_frost(image, pictures[rng.integers(len(pictures))], rng, of_image, of_frost)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Plane:
    """Return a random periodic field in [0, 1] from the diamond-square algorithm; `side` is a power of two."""
    field = np.zeros((side, side))
    step, wobble = side, 100.0

    def mean(a: Plane, along: int, b: Plane, across: int) -> Plane:
        """Return the mean of four neighbours plus noise."""
        four = a + np.roll(a, 1, along) + b + np.roll(b, -1, across)
        return four / 4 + wobble * rng.uniform(-wobble, wobble, a.shape)

    while step >= 2:
        half = step // 2
        corners, centres = field[::step, ::step], field[half::step, half::step]
        below = np.roll(corners, -1, 0)
        four = corners + below + np.roll(corners + below, -1, 1)
        centres[:] = four / 4 + wobble * rng.uniform(-wobble, wobble, four.shape)
        field[::step, half::step] = mean(centres, 0, corners, 1)
        field[half::step, ::step] = mean(centres, 1, corners, 0)
        step, wobble = half, wobble / decay
    field -= field.min()
    return field / field.max()


def fog(image: FloatImage, rng: np.random.Generator, amount: float, decay: float) -> FloatImage:
    """Add a cloud and rescale the sum to the maximum of the image."""
    height, width, brightest = *image.shape[:2], image.max()
    plasma = _plasma(2 ** max((max(height, width) - 1).bit_length(), 1), decay, rng)[:height, :width, None]
    return (image + amount * plasma) * brightest / (brightest + amount)
