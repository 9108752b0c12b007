"""The blurs of vit_jax.evals.corruptions.kinds: of lenses, rippled glass, motion and zooming."""

import math

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import ndimage, signal

Picture = Float[np.ndarray, "h w c"]
Bytes = UInt8[np.ndarray, "h w c"]
Plane = Float[np.ndarray, "h w"]


def to_bytes(image: Picture) -> Bytes:
    """Grey levels of 0 to 255, cut off and not rounded, as in the benchmark; a hair more, so that roundoff takes no level."""
    return (np.clip(image, 0, 1) * 255 + 1e-3).astype(np.uint8)


def _gaussian(image: Picture, sigma: float) -> Picture:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def disk(radius: float, sigma: float) -> Plane:
    """The kernel of defocus_blur: a disk, smoothed by a Gaussian of 3 x 3 pixels, 5 x 5 from a radius of 9 on.

    As in the benchmark, what is smoothed over the kernel's border is mirrored, so that disks of radius 8 and 10 sum to 1.01 and
    brighten the image by as much.
    """
    reach, half = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    line = np.arange(-reach, reach + 1)
    kernel = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    smooth = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, smooth / smooth.sum(), axis, mode="mirror")
    return kernel


def defocus_blur(image: Picture, rng: np.random.Generator, radius: float, sigma: float) -> Picture:
    """Out of focus: each point becomes a disk."""
    kernel = disk(radius, sigma)
    reach = len(kernel) // 2
    wide = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return signal.fftconvolve(wide, kernel[:, :, None], mode="valid", axes=(0, 1))


def glass_blur(image: Picture, rng: np.random.Generator, sigma: float, reach: int, passes: int) -> Picture:
    """Blurred, each pixel in turn replaced by a near one, and blurred.

    The benchmark's code means to swap the two, but numpy's views make it a copy, from one side only: so do we.
    """
    height, width, channels = image.shape
    pixels = to_bytes(_gaussian(image, sigma)).reshape(-1, channels)
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    for _ in range(passes):
        dx, dy = np.moveaxis(rng.integers(-reach, reach, (len(rows), len(columns), 2)), 2, 0)
        places = (rows[:, None] * width + columns).ravel()
        pixels = pixels[copied_from(len(pixels), places, places + (dy * width + dx).ravel())]
    return _gaussian(pixels.reshape(image.shape) / 255, sigma)


def copied_from(pixels: int, places: Int[np.ndarray, "n"], origins: Int[np.ndarray, "n"]) -> Int[np.ndarray, " pixels"]:
    """Whose value each pixel has in the end, where for k = 0, 1, ... places[k] takes the value of origins[k] at that time."""
    turns = np.arange(len(places))
    turn = np.full(pixels, len(places))
    turn[places] = turns
    # A turn whose origin has had its own turn shows what that one showed; following these links to the end, doubling the step
    # each time, takes the place of the loop over pixels.
    link = np.where(turn[origins] < turns, turn[origins], turns)
    while (link[link] != link).any():
        link = link[link]
    sources = np.arange(pixels)
    sources[places] = origins[link]
    return sources


def moved(image: Picture, radius: int, sigma: float, angle: float) -> Picture:
    """Blurred along a line: the image and shifts of it by 1 to 2 radius pixels, the weights one half of a Gaussian."""
    height, width = image.shape[:2]
    count = 2 * radius + 1
    weights = np.exp(-(np.arange(count) ** 2) / (2 * sigma**2))
    wide = np.pad(image, ((count, count), (count, count), (0, 0)), mode="edge")
    result = np.zeros_like(image)
    for i, weight in enumerate(weights / weights.sum()):
        top = count + math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        left = count + math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        result += weight * wide[top : top + height, left : left + width]
    return result


def motion_blur(image: Picture, rng: np.random.Generator, radius: int, sigma: float) -> Picture:
    """Moved while the shutter was open, in a direction up to 45 degrees off the horizontal."""
    return moved(image, radius, sigma, rng.uniform(-45, 45))


def _sampled(image: Picture, axis: int, factor: float) -> Picture:
    """The middle of one axis, magnified by `factor` with linear interpolation, of the same length."""
    length = image.shape[axis]
    seen = math.ceil(length / factor)
    made = round(seen * factor)
    # The ends of the part seen are the ends of what is made of it, of which the middle is kept.
    place = (np.arange(length) + (made - length) // 2) * (max(seen - 1, 0) / max(made - 1, 1))
    first = np.minimum(place.astype(int), max(seen - 2, 0))
    share = (place - first).reshape([-1 if a == axis else 1 for a in range(3)])
    first += (length - seen) // 2
    near, far = image.take(first, axis), image.take(np.minimum(first + 1, length - 1), axis)
    return near + share * (far - near)


def zoomed(image: Picture, factor: float) -> Picture:
    """The middle of an image, magnified to its size."""
    return _sampled(_sampled(image, 0, factor), 1, factor)


def zoom_blur(image: Picture, rng: np.random.Generator, stop: float, step: float) -> Picture:
    """The mean of the image, once more than the others, and of its magnifications by 1, 1 + step, ... below stop."""
    factors = np.arange(1, stop, step)
    return (image + sum(zoomed(image, factor) for factor in factors)) / (len(factors) + 1)
