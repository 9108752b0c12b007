"""Change which keys an example has."""

import math

import numpy as np

from vit_jax.data import source
from vit_jax.data.decode import MAX_PIXELS
from vit_jax.data.source import Example, Fields, decoded
from vit_jax.types import Units, UserError


class Patchify:
    """Replace `image` by its patches, up to a budget: `patches` [n, p * p * c], `coords` [n, 2], `valid` [n].

    coords are (row, column); rows beyond the patches of the image are zero and not valid.
    """

    reads = ("image",)

    def __init__(self, patch: int, budget: int):
        self._patch, self._budget = patch, budget

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of the result."""
        rest = {key: field for key, field in fields.items() if key != "image"}
        return rest | dict.fromkeys(("patches", "coords", "valid"), source.Field())

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        image = decoded(image)
        p = self._patch
        rows, columns = image.shape[0] // p, image.shape[1] // p
        if not 0 < rows * columns <= self._budget:
            raise UserError(
                f"patchify({p}, {self._budget}): found an image of {image.shape[0]} x {image.shape[1]} pixels, which is "
                f"{rows} x {columns} patches; resize it before."
            )
        grid = image[: rows * p, : columns * p].reshape(rows, p, columns, p, -1).swapaxes(1, 2)
        count, rest = rows * columns, {key: value for key, value in example.items() if key != "image"}
        patches = np.zeros((self._budget, p * p * image.shape[2]), np.uint8)
        patches[:count] = grid.reshape(count, -1)
        coords = np.zeros((self._budget, 2), np.int32)
        coords[:count] = np.indices((rows, columns)).reshape(2, -1).T
        return rest | {"patches": patches, "coords": coords, "valid": np.arange(self._budget) < count}


def picture_of(example: Example) -> np.ndarray:
    """Return the image [h, w, c] of an example of arrays, reassembled from RGB patches if it was patchified."""
    if "image" in example:
        return example["image"]
    valid = example["valid"]
    pixels, coords = example["patches"][valid], example["coords"][valid]
    patch, (rows, columns) = math.isqrt(pixels.shape[1] // 3), coords.max(axis=0) + 1
    grid = np.zeros((rows, columns, patch, patch, 3), np.uint8)
    grid[coords[:, 0], coords[:, 1]] = pixels.reshape(-1, patch, patch, 3)
    return grid.swapaxes(1, 2).reshape(rows * patch, columns * patch, 3)


def patchify(patch: Units, budget: Units) -> Patchify:
    """Cut the image into patches of `patch` pixels, row by row, padded to a sequence of `budget` (arXiv:2307.06304)."""
    if patch**2 * budget > MAX_PIXELS:
        raise ValueError(
            f"expected a budget of at most {MAX_PIXELS} pixels, found {budget} patches of {patch} x {patch}"
        )
    return Patchify(patch, budget)


class Drop:
    """Leave out some keys, which are then never read or decoded."""

    def __init__(self, keys: tuple[str, ...]):
        self.reads = keys

    def fields(self, fields: Fields) -> Fields:
        """Return the remaining fields."""
        return {key: field for key, field in fields.items() if key not in self.reads}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {key: value for key, value in example.items() if key not in self.reads}


def drop(key: str, *keys: str) -> Drop:
    """Leave out keys of the example."""
    return Drop((key, *keys))
