"""Apply geometric transforms: each maker takes literals and returns a map for all spatial fields of an example.

Images are uint8 [h, w, c]. Resizing uses Pillow's antialiasing, except in random crops (see `RandomCrop`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from vit_jax.data.decode import MAX_PIXELS, MAX_SIDE, check_size
from vit_jax.data.source import Box, Fill, cut
from vit_jax.data.transforms.resample import Method, Size, height_width, resample, resample_fast
from vit_jax.types import Units, UserError

Op = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# The library whose rounding of fractions to pixels is used; timm uses torchvision's.
Rule = Literal["big_vision", "torchvision", "transformers"]


class Geometric:
    """A geometric map, drawn once per example and applied to each of its images, segments and boxes.

    Called with only an image, it maps that image. A subclass draws from the size, and maps arrays [h, w, c]; arrays
    with a `fill`, such as segments, are not interpolated, and have that value outside the image (images are black
    there). It also maps boxes [n, 4], which are clipped to the new size.
    """

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Any:
        """Return the random parameters of the map for an image of this size."""

    def image(self, image: Shaped[np.ndarray, "h w c"], drawn: Any, fill: Fill | None = None) -> np.ndarray:
        """Return the mapped image."""
        raise NotImplementedError

    def boxes(self, boxes: np.ndarray, drawn: Any, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
        """Map boxes of an image of size `old` (height, width) into the mapped image of size `new`."""
        raise NotImplementedError

    def __call__(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
        return self.image(image, self.draw(image.shape[0], image.shape[1], rng))


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return boxes [n, 4] clipped to an image of (height, width)."""
    return np.clip(boxes, 0, np.array([size[1], size[0], size[1], size[0]])).astype(np.float32)


def scale_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Scale boxes of an image of size `old` to the image resized to `new`."""
    return clipped(boxes * (np.array([new[1], new[0]] * 2) / np.array([old[1], old[0]] * 2)), new)


def shifted(boxes: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """Return the boxes in a window of `size` with its upper left corner at (left, top)."""
    return clipped(boxes - np.array([left, top, left, top]), size)


class _Resize(Geometric):
    def __init__(self, target: Callable[[int, int], tuple[int, int]], method: Method):
        self._target, self._method = target, method

    def image(self, image, drawn, fill=None):
        return resample(image, self._target(*image.shape[:2]), self._method if fill is None else "nearest")

    def boxes(self, boxes, drawn, old, new):
        return scale_boxes(boxes, old, new)


def resize(size: Size, method: Method = "bilinear") -> Geometric:
    """Resize to exactly `size`, regardless of the aspect ratio."""
    target = height_width(size)
    return _Resize(lambda height, width: target, method)


def fit(patch: Units, budget: Units | tuple[Units, ...], method: Method = "bilinear") -> Geometric:
    """Resize to whole patches of `patch` pixels, as many as `budget` allows, nearly keeping the aspect ratio.

    This is SigLIP 2's rule (arXiv:2502.14786, section 2.4.2): at the largest scale, each side is rounded up to whole
    patches. If there are several budgets, one is drawn for each image.
    """
    budgets = (budget,) if isinstance(budget, int) else budget
    if not budgets:
        raise ValueError("expected a budget of at least one patch")
    if patch**2 * max(budgets) > MAX_PIXELS:
        raise ValueError(
            f"expected a budget of at most {MAX_PIXELS} pixels, found {max(budgets)} patches of {patch} x {patch}"
        )
    return _Fit(patch, budgets, method)


class _Fit(Geometric):
    def __init__(self, patch: int, budgets: tuple[int, ...], method: Method):
        self._patch, self._budgets, self._method = patch, budgets, method

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Any:
        budget = self._budgets[int(rng.integers(len(self._budgets))) if len(self._budgets) > 1 else 0]
        rows, columns = patches_that_fit(height, width, self._patch, budget)
        return rows * self._patch, columns * self._patch

    def image(self, image, drawn, nearest=False):
        return resample(image, drawn, "nearest" if nearest else self._method)

    def boxes(self, boxes, drawn, old, new):
        return scale_boxes(boxes, old, new)


def patches_that_fit(height: int, width: int, patch: int, budget: int) -> tuple[int, int]:
    """Return the rows and columns of patches, rounded up, at the largest scale that is within the budget."""
    rows = np.arange(1, budget + 1)
    scale = np.minimum(rows * patch / height, budget // rows * patch / width).max()
    # Rounding of the scale must not add a patch to a side of whole patches.
    return tuple(max(1, math.ceil(side * scale / patch - 1e-6)) for side in (height, width))  # type: ignore[return-value]


def resize_small(size: Size, method: Method = "bilinear", rule: Rule = "big_vision") -> Geometric:
    """Resize so that the shorter side is `size`, or the image just covers (height, width), keeping the aspect ratio.

    The longer side is rounded in float32 as in big_vision (pp/ops_image.py), or down as in torchvision (transforms.Resize) and
    transformers (get_resize_output_image_size). For (height, width) all sides are rounded, as in timm (ResizeKeepRatio).
    """
    least = height_width(size)

    def target(height: int, width: int) -> tuple[int, int]:
        shorter = min(height, width)
        if not isinstance(size, int):
            ratio = min(height / least[0], width / least[1])
            return round(height / ratio), round(width / ratio)
        if rule == "big_vision":
            scale = np.float32(size) / np.float32(shorter)
            return int(np.rint(np.float32(height) * scale)), int(np.rint(np.float32(width) * scale))
        longer = int(size * max(height, width) / shorter)
        return (longer, size) if width <= height else (size, longer)

    return _Resize(target, method)


class _CentralCrop(Geometric):
    def __init__(self, size: Size, rule: Rule):
        self._given, self._size, self._rule = size, height_width(size), rule

    def draw(self, height, width, rng):
        """Return the upper left corner of the window in the image, negative if the image is padded."""
        free = (height - self._size[0], width - self._size[1])
        if min(free) < 0 and self._rule == "big_vision":
            raise UserError(
                f"Found an image of {height} x {width} pixels, expected at least {self._size[0]} x {self._size[1]} "
                f"for central_crop({self._given}): put resize_small before it."
            )
        top, left = (
            -(-pixels // 2) if pixels < 0 else round(pixels / 2) if self._rule == "torchvision" else pixels // 2
            for pixels in free
        )
        return left, top

    def image(self, image, drawn, fill=None):
        left, top = drawn
        if min(drawn) < 0:
            before = (max(-top, 0), max(-left, 0))
            after = (max(self._size[i] - image.shape[i] - before[i], 0) for i in range(2))
            image = np.pad(image, [*zip(before, after, strict=True), (0, 0)], constant_values=fill or 0)
            top, left = max(top, 0), max(left, 0)
        return image[top : top + self._size[0], left : left + self._size[1]]

    def boxes(self, boxes, drawn, old, new):
        return shifted(boxes, *drawn, new)


def resize_inside(size: Size, method: Method = "bilinear") -> Geometric:
    """Resize so that the image just fits into `size`, keeping the aspect ratio; sides are rounded."""
    most = height_width(size)

    def target(height: int, width: int) -> tuple[int, int]:
        ratio = max(height / most[0], width / most[1])
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    return _Resize(target, method)


def central_crop(size: Size, rule: Rule = "big_vision") -> Geometric:
    """Cut out the central `size` pixels.

    If a margin is odd, the extra pixel is cut at the bottom or right; torchvision rounds half of the margin to even
    instead. An image that is too small is an error; torchvision and transformers pad it with black.
    """
    return _CentralCrop(size, rule)


class _Flip(Geometric):
    def draw(self, height, width, rng):
        return rng.random() < 0.5

    def image(self, image, drawn, fill=None):
        return image[:, ::-1] if drawn else image

    def boxes(self, boxes, drawn, old, new):
        if not drawn:
            return boxes
        left, top, right, bottom = boxes.T
        return np.stack([new[1] - right, top, new[1] - left, bottom], axis=1)


def flip() -> Geometric:
    """Mirror left and right with probability 1/2."""
    return _Flip()


class _Rotate(Geometric):
    def __init__(self, degrees: float):
        self._degrees = degrees

    def draw(self, height, width, rng):
        return rng.uniform(-self._degrees, self._degrees)

    def image(self, image, drawn, fill=None):
        method = Image.Resampling.BILINEAR if fill is None else Image.Resampling.NEAREST
        planes = [Image.fromarray(np.ascontiguousarray(image[:, :, i])) for i in range(image.shape[2])]
        return np.stack([np.asarray(plane.rotate(drawn, method, fillcolor=fill)) for plane in planes], axis=2)

    def boxes(self, boxes, drawn, old, new):
        """Return the smallest axis-aligned boxes around the rotated ones."""
        angle, centre = np.deg2rad(drawn), np.array([old[1], old[0]]) / 2
        corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - centre
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = corners @ turn + centre
        return clipped(np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1), new)


def rotate(degrees: float) -> Geometric:
    """Rotate by an angle uniform in [-degrees, degrees] about the centre; the uncovered corners are black."""
    if degrees < 0:
        raise ValueError(f"degrees must be at least 0, found {degrees}")
    return _Rotate(degrees)


class _PadCrop(Geometric):
    def __init__(self, size: Size, padding: int, mode: str):
        self._given, self._size, self._padding, self._mode = size, height_width(size), padding, mode

    def draw(self, height, width, rng):
        free_rows, free_columns = (
            side + 2 * self._padding - wanted for side, wanted in zip((height, width), self._size, strict=True)
        )
        if free_rows < 0 or free_columns < 0:
            raise UserError(
                f"Found an image of {height} x {width} pixels, too small for pad_crop({self._given}, {self._padding}): put "
                "resize before it or pad more."
            )
        top, left = int(rng.random() * (free_rows + 1)), int(rng.random() * (free_columns + 1))
        return left, top

    def image(self, image, drawn, fill=None):
        (left, top), (height, width), padding = drawn, self._size, self._padding
        rows = padded_positions(image.shape[0], padding)[top : top + height]
        columns = padded_positions(image.shape[1], padding)[left : left + width]
        # Gathering by position is several times faster than np.pad on small images.
        window = image.take(rows, axis=0).take(columns, axis=1)
        if self._mode == "zero":
            inside_rows, inside_columns = top + np.arange(height) - padding, left + np.arange(width) - padding
            window[(inside_rows < 0) | (inside_rows >= image.shape[0])] = fill or 0
            window[:, (inside_columns < 0) | (inside_columns >= image.shape[1])] = fill or 0
        return window

    def boxes(self, boxes, drawn, old, new):
        left, top = drawn
        return shifted(boxes, left - self._padding, top - self._padding, new)


def pad_crop(size: Size, padding: int, mode: Literal["reflect", "zero"] = "reflect") -> Geometric:
    """Pad every side by `padding` pixels and cut a random window of `size` (arXiv:1512.03385, section 4.2)."""
    if not 0 <= padding <= MAX_SIDE:
        raise ValueError(f"padding must be at least 0 and at most {MAX_SIDE}, found {padding}")
    return _PadCrop(size, padding, mode)


class _Chain(Geometric):
    """A sequence of maps."""

    def __init__(self, *parts: Geometric):
        self._parts = parts

    def draw(self, height, width, rng):
        drawn, blank = [], np.zeros((height, width, 1), np.uint8)
        for part in self._parts:
            drawn.append((part.draw(*blank.shape[:2], rng), blank.shape[:2]))
            blank = part.image(blank, drawn[-1][0], fill=0)
        return [*drawn, (None, blank.shape[:2])]

    def image(self, image, drawn, fill=None):
        for part, (one, _) in zip(self._parts, drawn, strict=False):
            image = part.image(image, one, fill)
        return image

    def boxes(self, boxes, drawn, old, new):
        for part, (one, before), (_, after) in zip(self._parts, drawn, drawn[1:], strict=False):
            boxes = part.boxes(boxes, one, before, after)
        return boxes


def simple_crop(size: int) -> Geometric:
    """Crop simply: shorter side to `size`, bicubic, padded by 4 and randomly cut (arXiv:2204.07118, section 3.2)."""
    return _Chain(resize_small(size, "bicubic"), pad_crop(size, 4))


@functools.lru_cache(maxsize=256)
def padded_positions(length: int, padding: int) -> Int[np.ndarray, "padded"]:
    """Return the pixel at each position of a side padded by reflection; the edge pixel is not repeated."""
    period = max(2 * (length - 1), 1)
    position = np.arange(-padding, length + padding) % period
    return np.minimum(position, period - position) if length > 1 else np.zeros_like(position)


class RandomCrop(Geometric):
    """A random part of the image, resized to `size`; a subclass draws the part.

    `draw` returns the box and `resized` maps the part inside it, so that a decoder may decode only that part.
    Resampling ignores everything outside the part.
    """

    def __init__(self, size: Size, area: tuple[float, float], ratio: float | tuple[float, float], method: Method):
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"expected 0 < area_min <= area_max <= 1, found {area[0]} and {area[1]}")
        if not isinstance(ratio, tuple) and ratio < 1:
            raise ValueError(f"expected ratio >= 1, or two numbers, found {ratio}")
        self._ratio = ratio if isinstance(ratio, tuple) else (1 / ratio, ratio)
        if not 0 < self._ratio[0] <= self._ratio[1]:
            raise ValueError(f"expected the smaller ratio above 0 and first, found {ratio}")
        self._size, self._area, self._method = height_width(size), area, method

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """Return the box (left, top, right, bottom) in an image of this size."""
        # Checked on the whole image, so that whether it is unreadable does not depend on the draw.
        check_size(max(height, width), max(self._size))
        return self._box(height, width, rng)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        raise NotImplementedError

    def image(self, image, drawn, fill=None):
        return self.resized(cut(image, drawn), fill)

    def resized(self, part: Shaped[np.ndarray, "h w c"], fill: Fill | None = None) -> Shaped[np.ndarray, "h2 w2 c"]:
        """Return the result for the part of an image or pixel map inside the box."""
        if fill is None:
            return resample_fast(part, self._size, self._method)
        return resample(part, self._size, "nearest")

    def boxes(self, boxes, drawn, old, new):
        left, top, right, bottom = drawn
        inside = (bottom - top, right - left)
        return scale_boxes(shifted(boxes, left, top, inside), inside, new)


class _InceptionCrop(RandomCrop):
    def _box(self, height, width, rng):
        least, most = (share * height * width for share in self._area)
        for _ in range(100):
            aspect = rng.uniform(*self._ratio)
            tallest = min(round((most / aspect) ** 0.5), height)
            if round(tallest * aspect) > width:
                tallest = int((width + 0.5) / aspect)
                tallest -= round(tallest * aspect) > width
            shortest = min(round((least / aspect) ** 0.5), tallest)
            rows = int(rng.integers(shortest, tallest + 1))
            # Rounding may have moved the area one row beyond its bounds.
            rows += round(rows * aspect) * rows < least
            rows -= round(rows * aspect) * rows > most
            columns = round(rows * aspect)
            if least <= rows * columns <= most and 1 <= rows <= height and 1 <= columns <= width:
                # The last position is left out, as in TensorFlow.
                left = int(rng.integers(max(1, width - columns)))
                top = int(rng.integers(max(1, height - rows)))
                return left, top, left + columns, top + rows
        return 0, 0, width, height


class _RandomResizedCrop(RandomCrop):
    def _box(self, height, width, rng):
        narrowest, widest = self._ratio
        for _ in range(10):
            pixels = height * width * rng.uniform(*self._area)
            aspect = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
            columns, rows = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
            if 1 <= columns <= width and 1 <= rows <= height:
                left, top = int(rng.integers(width - columns + 1)), int(rng.integers(height - rows + 1))
                return left, top, left + columns, top + rows
        columns, rows = min(width, round(height * widest)), min(height, round(width / narrowest))
        left, top = (width - columns) // 2, (height - rows) // 2
        return left, top, left + columns, top + rows


class _ScaleCrop(Geometric):
    def __init__(self, size: Size, scale: tuple[float, float], method: Method):
        self._size, self._scale, self._method = height_width(size), scale, method

    def draw(self, height, width, rng):
        """Return the resized (height, width), and the upper left corner of the window in it."""
        ratio = rng.uniform(*self._scale) * min(self._size) / min(height, width)
        resized = max(1, round(height * ratio)), max(1, round(width * ratio))
        check_size(*resized)
        top, left = (int(rng.integers(max(0, now - side) + 1)) for now, side in zip(resized, self._size, strict=True))
        return resized, left, top

    def image(self, image, drawn, fill=None):
        resized, left, top = drawn
        image = resample(image, resized, self._method if fill is None else "nearest")
        image = image[top : top + self._size[0], left : left + self._size[1]]
        margins = [(0, side - now) for side, now in zip(self._size, image.shape, strict=False)]
        return np.pad(image, [*margins, (0, 0)], constant_values=fill or 0)

    def boxes(self, boxes, drawn, old, new):
        resized, left, top = drawn
        return shifted(scale_boxes(boxes, old, resized), left, top, new)


def scale_crop(size: Size, least: float = 0.5, most: float = 2.0, method: Method = "bilinear") -> Geometric:
    """Resize the shorter side to the shorter one of `size` times a uniform factor, then cut a random window of `size`.

    If the image is smaller than the window, it is padded at the bottom and right. This is the usual augmentation for
    segmentation (arXiv:1612.01105, section 4.2).
    """
    if not 0 < least <= most:
        raise ValueError(f"expected 0 < least <= most, found {least} and {most}")
    return _ScaleCrop(size, (least, most), method)


def inception_crop(
    size: Size,
    area_min: float = 0.05,
    area_max: float = 1.0,
    ratio: float | tuple[float, float] = (0.75, 1.33),
    method: Method = "bilinear",
) -> RandomCrop:
    """Crop a random part and resize it to `size` (arXiv:1409.4842, section 6), like the original ViT and big_vision.

    The distribution follows TensorFlow's sample_distorted_bounding_box: width / height is uniform in `ratio` (a number
    r means 1 / r to r), then the height is uniform among those with an area fraction in [area_min, area_max] that fit.
    Small parts are therefore more frequent than with `random_resized_crop`. A draw that does not fit is repeated up to
    100 times, then the whole image is used. TensorFlow's own bilinear resize is not antialiased.
    """
    return _InceptionCrop(size, (area_min, area_max), ratio, method)


def random_resized_crop(
    size: Size,
    area_min: float = 0.08,
    area_max: float = 1.0,
    ratio: float | tuple[float, float] = (3 / 4, 4 / 3),
    method: Method = "bilinear",
) -> RandomCrop:
    """Crop a random part and resize it to `size`, like torchvision's RandomResizedCrop; used by DeiT, MAE and DINO.

    The area fraction is uniform in [area_min, area_max], width / height log-uniform in `ratio` (a number r means 1 / r
    to r). After 10 draws that do not fit, it is the middle of the image, as large as `ratio` allows.
    """
    return _RandomResizedCrop(size, (area_min, area_max), ratio, method)
