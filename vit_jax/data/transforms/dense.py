"""Transform examples with labelled pixels or boxes: labels at the image's original size, and fixed shapes."""

import dataclasses

import numpy as np

from vit_jax.data import source
from vit_jax.data.source import Example, Fields, Fill, decoded
from vit_jax.data.transforms.resample import Size, height_width
from vit_jax.types import Count, UserError


def _padded(array: np.ndarray, size: tuple[int, int], fill: Fill, what: str) -> np.ndarray:
    """Pad an array [h, w, ...] with `fill` at the bottom and right."""
    height, width = array.shape[:2]
    if height > size[0] or width > size[1]:
        raise UserError(
            f"{what}: found {height} x {width} pixels, expected at most {size[0]} x {size[1]}: give a larger size, or "
            "put a resize before it."
        )
    margins = [(0, size[0] - height), (0, size[1] - width)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, margins, constant_values=fill)


class OwnSize:
    """Keep pixel labels unchanged, on a canvas of `size`; `own_size` [2] is the height and width of the image."""

    def __init__(self, size: tuple[int, int]):
        self._size = size

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of the result; pixel labels are no longer transformed with the image."""
        kept = {
            key: dataclasses.replace(field, own_size=True) if isinstance(field, tuple(source.FILLS)) else field  # type: ignore[call-arg]
            for key, field in fields.items()
        }
        self._fills = {key: source.FILLS[type(field)] for key, field in fields.items() if type(field) in source.FILLS}
        self._images = [key for key, field in fields.items() if isinstance(field, source.Image)]
        return kept | {"own_size": source.Field()}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        result = dict(example) | {key: decoded(example[key]) for key in (*self._fills, *self._images)}
        height, width = result[next(iter(self._images))].shape[:2]
        for key, fill in self._fills.items():
            result[key] = _padded(result[key], self._size, fill, f"own_size({self._size})")
        return result | {"own_size": np.array([height, width], np.int32)}


def own_size(size: Size) -> OwnSize:
    """Keep pixel labels at the image's original size, padded to `size`; later transforms change only the image.

    Predictions are then resized to the original size of each image and evaluated there.
    """
    return OwnSize(height_width(size))


class Pad:
    """Pad images with black and pixel labels with the ignored value; `image_size` [2] is the size before padding."""

    def __init__(self, size: tuple[int, int]):
        self._size = size

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of the result."""
        spatial = {k: f for k, f in fields.items() if not getattr(f, "own_size", False)}
        self._fills: dict[str, Fill] = {k: 0 for k, f in spatial.items() if isinstance(f, source.Image)}
        self._images = tuple(self._fills)
        self._fills |= {k: source.FILLS[type(f)] for k, f in spatial.items() if type(f) in source.FILLS}
        return {**fields, "image_size": source.Field()}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        result = dict(example)
        for key, fill in self._fills.items():
            value = np.asarray(decoded(result[key]))
            if key in self._images:
                result["image_size"] = np.array(value.shape[:2], np.int32)
            result[key] = _padded(value, self._size, fill, f"pad({self._size})")
        return result


def pad(size: Size) -> Pad:
    """Pad the image at the bottom and at the right to `size`, as DETR does (arXiv:2005.12872, appendix A.4)."""
    return Pad(height_width(size))


class PadBoxes:
    """Pad boxes and their classes to a fixed number; empty boxes, which a crop may leave, are dropped."""

    def __init__(self, most: int, min_side: float):
        self._most, self._min_side = most, min_side

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of the result; raises UserError if there are no boxes with classes."""
        self._boxes = [key for key, field in fields.items() if isinstance(field, source.Boxes)]
        self._labels = [key for key, field in fields.items() if isinstance(field, source.BoxLabels)]
        if len(self._boxes) != 1 or len(self._labels) != 1:
            raise UserError(
                f"The transform pad_boxes reads boxes and their classes; found examples with {', '.join(map(repr, fields))}: "
                "take another source, such as coco.Coco."
            )
        return fields

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        boxes = np.asarray(example[self._boxes[0]], np.float32).reshape(-1, 4)
        labels = np.asarray(example[self._labels[0]], np.int32)
        inside = (boxes[:, 2:] - boxes[:, :2] >= self._min_side).all(axis=1) & (labels >= 0)
        count = int(inside.sum())
        if count > self._most:
            raise UserError(
                f"pad_boxes({self._most}): found an image with {count} boxes; use at least that number, and in a "
                "detector at least as many tokens."
            )
        padded, classes = np.zeros((self._most, 4), np.float32), np.full(self._most, -1, np.int32)
        padded[:count], classes[:count] = boxes[inside], labels[inside]
        return {**example, self._boxes[0]: padded, self._labels[0]: classes}


def pad_boxes(most: Count, min_side: float = 1.0) -> PadBoxes:
    """Pad the boxes of every image to `most` rows; boxes with a side below `min_side` pixels are dropped."""
    if min_side <= 0:
        raise ValueError(f"expected min_side above 0, found {min_side}")
    return PadBoxes(most, min_side)
