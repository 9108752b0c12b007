"""Load images with several labels or with numbers, listed in a CSV file."""

import csv
import functools
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vit_jax import stores
from vit_jax.data.files import read_file
from vit_jax.data.images import ImageFile
from vit_jax.data.source import Example, Image, Labels, Numbers, Source, normalized
from vit_jax.types import Count, UserError


class Table(Source):
    """A CSV file with image paths, relative to the file or absolute, in its first column and numbers in the others.

    The header names the columns: one of 0 and 1 per class for several labels, or one per number for regression. The
    file and the images may be in an object store. Raises UserError with the line if the table is invalid.
    """

    def __init__(self, path: str, channels: Count = 3):
        self._root, self._channels = os.path.dirname(os.path.expanduser(path)), channels
        try:
            reader = csv.reader(io.StringIO(stores.read(os.path.expanduser(path)).decode("utf-8-sig"), newline=""))
            rows = [(reader.line_num, row) for row in reader if row]
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(
                f"Found no readable table at {path!r} ({getattr(error, 'strerror', None) or error}), expected a CSV file: "
                "check the path."
            ) from error
        if len(rows) < 2 or len(rows[0][1]) < 2 or len(set(normalized(rows[0][1]))) < len(rows[0][1]):
            raise UserError(
                f"Found {rows[0][1] if rows else 'nothing'} as the header of {path}, {max(len(rows) - 1, 0)} lines below; "
                "expected a column of image paths and at least one of numbers, each of its own name, and at least one image."
            )
        self._files = [row[0] for _, row in rows[1:]]
        self._numbers = np.stack([_numbers(path, line, row, len(rows[0][1])) for line, row in rows[1:]])
        names = tuple(rows[0][1][1:])
        other = np.flatnonzero(~np.isin(self._numbers, (0.0, 1.0)).all(axis=1))
        label: Labels | Numbers = Labels(names)
        if len(other):
            index = int(other[0])
            example = f"{self.name(index)} has the numbers {self._numbers[index][:5].tolist()}"
            label = Numbers(names, example)
        self.fields = {"image": Image(), "label": label}

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        file = self._files[index]
        if stores.is_remote(file):
            return file
        file = os.path.expanduser(file)
        return stores.join_url(self._root, file) if stores.is_remote(self._root) else str(Path(self._root) / file)

    def __getitem__(self, index: int) -> Example:
        image = ImageFile(functools.partial(read_file, _as_on_disk(self.name(index))), self._channels)
        return {"image": image, "label": self._numbers[index]}


def _as_on_disk(path: str) -> str:
    """Return the existing spelling of a path: a table and a disk may compose the letters of a name differently."""
    spellings = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    if path.isascii() or stores.is_remote(path) or os.path.lexists(path):
        return path
    return next((other for other in spellings if os.path.lexists(other)), path)


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
