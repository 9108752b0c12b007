"""Apply the blurs of vit_jax.evals.corruptions.kinds: defocus, glass, motion and zoom."""

import math

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import ndimage, signal

FloatImage = Float[np.ndarray, "h w c"]
ByteImage = UInt8[np.ndarray, "h w c"]
Plane = Float[np.ndarray, "h w"]


def to_bytes(image: FloatImage) -> ByteImage:
    """Convert to grey levels 0 to 255, truncating as in the benchmark; 1e-3 guards against floating-point errors."""
    return (np.clip(image, 0, 1) * 255 + 1e-3).astype(np.uint8)


def _gaussian(image: FloatImage, sigma: float) -> FloatImage:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def disk(radius: float, sigma: float) -> Plane:
    """Return the kernel of defocus_blur: a disk, smoothed by a Gaussian of 3 x 3 pixels, or 5 x 5 for a radius above 8.

    As in the benchmark, smoothing mirrors at the kernel's border, so disks of radius 8 and 10 sum to 1.01 and brighten the
    image by 1 %.
    """
    reach, half = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    line = np.arange(-reach, reach + 1)
    kernel = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    smooth = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, smooth / smooth.sum(), axis, mode="mirror")
    return kernel


def defocus_blur(image: FloatImage, rng: np.random.Generator, radius: float, sigma: float) -> FloatImage:
    """Convolve with a disk."""
    kernel = disk(radius, sigma)
    reach = len(kernel) // 2
    wide = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return signal.fftconvolve(wide, kernel[:, :, None], mode="valid", axes=(0, 1))


def glass_blur(image: FloatImage, rng: np.random.Generator, sigma: float, reach: int, passes: int) -> FloatImage:
    """Blur, replace each pixel in turn by a nearby one, and blur again.

    The benchmark's code intends to swap the two pixels, but copies one because of numpy views; this is reproduced.
    """
    height, width, channels = image.shape
    pixels = to_bytes(_gaussian(image, sigma)).reshape(-1, channels)
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    for _ in range(passes):
        dx, dy = np.moveaxis(rng.integers(-reach, reach, (len(rows), len(columns), 2)), 2, 0)
        places = (rows[:, None] * width + columns).ravel()
        pixels = pixels[copy_sources(len(pixels), places, places + (dy * width + dx).ravel())]
    return _gaussian(pixels.reshape(image.shape) / 255, sigma)


def copy_sources(
    pixels: int, places: Int[np.ndarray, "n"], origins: Int[np.ndarray, "n"]
) -> Int[np.ndarray, " pixels"]:
    """Return the source of each pixel after the sequential copies pixel[places[k]] = pixel[origins[k]], k = 0, 1, ..."""
    steps = np.arange(len(places))
    step_of = np.full(pixels, len(places))
    step_of[places] = steps
    # If the origin of a copy was itself copied before, the source is that of the earlier copy: follow these links to
    # their ends by pointer doubling instead of looping over pixels.
    earlier = np.where(step_of[origins] < steps, step_of[origins], steps)
    while (earlier[earlier] != earlier).any():
        earlier = earlier[earlier]
    sources = np.arange(pixels)
    sources[places] = origins[earlier]
    return sources


def line_blur(image: FloatImage, radius: int, sigma: float, angle: float) -> FloatImage:
    """Blur along a line: average shifts by 0 to 2 * radius pixels, weighted by half a Gaussian."""
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


def motion_blur(image: FloatImage, rng: np.random.Generator, radius: int, sigma: float) -> FloatImage:
    """Blur along a line within 45 degrees of the horizontal."""
    return line_blur(image, radius, sigma, rng.uniform(-45, 45))


def _magnify_axis(image: FloatImage, axis: int, factor: float) -> FloatImage:
    """Magnify the center of one axis by `factor` with linear interpolation, keeping its length."""
    length = image.shape[axis]
    visible = math.ceil(length / factor)
    magnified = round(visible * factor)
    # Endpoints map to endpoints; the center of the magnified part is kept.
    position = (np.arange(length) + (magnified - length) // 2) * (max(visible - 1, 0) / max(magnified - 1, 1))
    first = np.minimum(position.astype(int), max(visible - 2, 0))
    fraction = (position - first).reshape([-1 if a == axis else 1 for a in range(3)])
    first += (length - visible) // 2
    near, far = image.take(first, axis), image.take(np.minimum(first + 1, length - 1), axis)
    return near + fraction * (far - near)


def magnify(image: FloatImage, factor: float) -> FloatImage:
    """Magnify the center of an image to the image's size."""
    return _magnify_axis(_magnify_axis(image, 0, factor), 1, factor)


def zoom_blur(image: FloatImage, rng: np.random.Generator, stop: float, step: float) -> FloatImage:
    """Average the image and its magnifications by 1, 1 + step, ... below stop."""
    factors = np.arange(1, stop, step)
    return (image + sum(magnify(image, factor) for factor in factors)) / (len(factors) + 1)
