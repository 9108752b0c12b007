"""Images with several labels or with numbers, listed in a CSV file."""

import csv
import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vit_jax import stores
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.encoded import Encoded
from vit_jax.types import UserError


class Table(Encoded):
    """A CSV file whose first column is the path of an image, beside the file or absolute, the others its numbers.

    The header names them: for several labels one column of 0 and 1 for each class, for regression one for each quantity.
    File and images may be on an object store. Raises UserError, which gives the line, for what is no such table.
    """

    def __init__(self, path: str, channels: int = 3):
        self._root, self.channels = os.path.dirname(os.path.expanduser(path)), channels
        try:
            reader = csv.reader(io.StringIO(stores.read(os.path.expanduser(path)).decode("utf-8-sig"), newline=""))
            rows = [(reader.line_num, row) for row in reader if row]
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(
                f"Found no readable table at {path!r} ({getattr(error, 'strerror', None) or error}), expected a CSV file: "
                "check the path."
            ) from error
        if len(rows) < 2 or len(rows[0][1]) < 2 or len(set(rows[0][1])) < len(rows[0][1]):
            raise UserError(
                f"Found {rows[0][1] if rows else 'nothing'} as the header of {path}, {max(len(rows) - 1, 0)} lines below; "
                "expected a column of image paths and at least one of numbers, each of its own name, and at least one image."
            )
        self.class_names = tuple(rows[0][1][1:])
        self.label_shape = (len(self.class_names),)
        self._files = [row[0] for _, row in rows[1:]]
        self._numbers = np.stack([_numbers(path, line, row, len(rows[0][1])) for line, row in rows[1:]])

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        file = self._files[index]
        if stores.is_remote(file):
            return file
        return stores.join_url(self._root, file) if stores.is_remote(self._root) else str(Path(self._root) / file)

    def label(self, index: int) -> Float[np.ndarray, "n"]:
        return self._numbers[index]

    def encoded(self, index: int) -> bytes:
        try:
            return stores.read(self.name(index))
        except (OSError, ValueError) as error:
            raise UnreadableImage(getattr(error, "strerror", None) or str(error)) from error


def _numbers(path: str, line: int, row: list[str], columns: int) -> Float[np.ndarray, "n"]:
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray([float(cell) for cell in row[1:]]).astype(np.float32)
    except ValueError as error:
        raise UserError(f"Found line {line} of {path} with {error}, expected numbers after the image's path.") from None
    if len(row) != columns or not np.isfinite(numbers).all():
        raise UserError(
            f"Found line {line} of {path} with {len(row)} columns of {row[1:5]}, expected {columns} and finite numbers "
            "of float32."
        )
    return numbers
