"""Load images with captions, listed in a table next to them or in one .txt file per image."""

import csv
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.config.factory import near, quoted
from vit_jax.data import files, tokenizers
from vit_jax.data.images import ImageFile
from vit_jax.data.source import Example, Field, Fields, Image, Source, Text, UnreadableImage
from vit_jax.types import Count, Fraction, Seed, UserError

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


class Pairs(Source):
    """Images and captions from a CSV, TSV, JSONL or Parquet file, or from a folder with `a.jpg` next to `a.txt`.

    In a table, `image_key` names the column with the image's path, relative to the file or absolute, and `text_key` the
    column with the caption, in JSONL and Parquet also a list of them; all lines of an image are its captions. In a
    folder, each line of a .txt is a caption. split: "train" and "test" are a seeded holdout by image, "all" is
    everything. features: a .npy [n, d] with one vector for each image of "all", for example from a frozen tower; they
    are float32 under the key "features". Raises UserError with the line if a table is invalid.
    """

    def __init__(
        self,
        path: str,
        split: str = "all",
        image_key: str = "image",
        text_key: str = "text",
        holdout: Fraction = 0.1,
        split_seed: Seed = 0,
        features: str | None = None,
        channels: Count = 3,
    ):
        if split not in ("train", "test", "all"):
            raise UserError(f"Found split={split!r}, expected 'train', 'test' or 'all'.")
        path = os.path.expanduser(path)
        self._channels = channels
        is_table = path.lower().endswith(TABLES)
        self._root = os.path.dirname(path) if is_table else path
        pairs = _of_table(path, image_key, text_key) if is_table else _of_folder(path)
        self._pairs = [
            pair
            for pair in pairs.items()
            if split == "all" or _held_out(pair[0], holdout, split_seed) == (split == "test")
        ]
        if not self._pairs:
            raise UserError(
                f"Found no images for split={split!r} in {path}, expected at least one: check holdout={holdout}."
            )
        self.fields = dict(self.fields_of(()))
        self._vectors = None if features is None else _vectors(features, len(pairs))
        if self._vectors is not None:
            position = {name: i for i, name in enumerate(pairs)}
            self._rows = [position[name] for name, _ in self._pairs]
            self.fields["features"] = Field()

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """See Source."""
        return {"image": Image(), "text": Text()}

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        file = self._pairs[index][0]
        return file if stores.is_remote(file) else stores.join(self._root, file)

    def __getitem__(self, index: int) -> Example:
        image = ImageFile(functools.partial(files.read_file, self.name(index)), self._channels)
        texts = self._pairs[index][1]
        if texts is None:
            lines = _text_of(os.path.splitext(self.name(index))[0] + ".txt").splitlines()
            texts = tuple(line for line in lines if line.strip())
        example: Example = {"image": image, "text": texts}
        return example if self._vectors is None else {**example, "features": self._vectors[self._rows[index]]}


def _held_out(name: str, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") < share * 2**48


def _vectors(path: str, count: int) -> np.ndarray:
    try:
        vectors = np.load(os.path.expanduser(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"Found no vectors at {path!r} ({error}), expected a .npy file of numbers.") from None
    if vectors.ndim != 2 or len(vectors) != count or vectors.dtype.kind != "f":
        raise UserError(
            f"Found {vectors.dtype} of shape {vectors.shape} in {path}, expected floats [{count}, d], one row for each image of "
            "the pairs in their order: recreate them with `vit features`."
        )
    return vectors


def _text_of(path: str) -> str:
    """Return a caption file's text; raises UnreadableImage, as any damaged part of an example does."""
    try:
        return stores.read(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableImage(f"its caption {path} cannot be read ({error})") from error


def _of_folder(root: str) -> dict[str, tuple[str, ...] | None]:
    """Return the images of a folder that have a matching .txt file; the captions are read later."""
    left_out = files.LeftOut()
    if not stores.is_remote(root) and not os.path.isdir(root):
        raise UserError(
            f"Found no folder or table at {root!r}, expected a folder, or a file ending in {', '.join(TABLES)}."
        )
    images = files.find_images(root, left_out)
    if stores.is_remote(root):
        texts = {name.removesuffix(".txt") for name in stores.entries(root) if name.endswith(".txt")}
        paired = [name for name in images if os.path.splitext(name)[0] in texts]
    else:
        paired = [name for name in images if os.path.isfile(os.path.join(root, os.path.splitext(name)[0] + ".txt"))]
    if not paired:
        raise UserError(
            f"Found {len(images)} images in {root} and no .txt next to any, expected a.txt next to a.jpg, or a table: "
            f"data.source.path=FILE with one of the endings {', '.join(TABLES)}."
        )
    for name in sorted(set(images) - set(paired)):
        left_out.add(os.path.join(root, name), "image without a .txt")
    files.report(root, left_out)
    return dict.fromkeys(paired)


def _of_table(path: str, image_key: str, text_key: str) -> dict[str, tuple[str, ...] | None]:
    """Return the captions of each image in a table, in table order."""
    found: dict[str, list[str]] = {}
    for line, row in _rows(path, (image_key, text_key)):
        where = f"line {line} of {path}"
        for key in (image_key, text_key):
            if key not in row:
                known = list(map(str, row))[:20]
                raise UserError(f"Found {where} without {key!r}{near(key, known)} Set image_key and text_key.")
        image = row[image_key]
        if not isinstance(image, str) or not image.strip():
            raise UserError(f"Found {where} with {image_key}={quoted(image, 60)}, expected the path of an image.")
        try:
            found.setdefault(image, []).extend(tokenizers.checked(row[text_key]))
        except ValueError as error:
            raise UserError(f"Found {where}: {error}; correct or remove it.") from None
    if not found:
        raise UserError(f"Found no images in {path}, expected a line for each image and caption.")
    return {image: tuple(texts) for image, texts in found.items()}


def _rows(path: str, keys: tuple[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, columns) of a table."""
    try:
        data = stores.read(path)
        if path.lower().endswith(".parquet"):
            yield from _parquet(data, path)
        elif path.lower().endswith(".jsonl"):
            for line, text in enumerate(data.decode("utf-8-sig").split("\n"), 1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise UserError(
                            f"Found {quoted(row, 60)} on line {line} of {path}, expected an object with {keys}."
                        )
                    yield line, row
        else:
            delimiter = "\t" if path.lower().endswith(".tsv") else ","
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter)
            for row in reader:
                if None in row:
                    raise UserError(
                        f"Found line {reader.line_num} of {path} with more cells than its header; put captions with "
                        f"{delimiter!r} into quotes."
                    )
                yield reader.line_num, row
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(
            f"Found no readable table at {path!r} ({getattr(error, 'strerror', None) or error}), expected a file ending in "
            f"{', '.join(TABLES)}: check the path."
        ) from None


def _parquet(data: bytes, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    parquet = tokenizers.library("pyarrow.parquet")
    import pyarrow

    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"Found no readable table at {path!r} ({error}), expected a Parquet file.") from None
    yield from enumerate(rows, 1)
