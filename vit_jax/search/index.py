"""Store an index on disk: append-only shards of unit vectors and image names, from which all else follows.

    DIR/index.json              description of the vectors: model, feature, fingerprint, length
    DIR/shards/000000.npy       float32 [images * per_image, d]
    DIR/shards/000000.json      names, labels and root of the images, unreadable ones, and the checksum of the vectors
    DIR/graph.usearch, graph.json   a graph in float16 for approximate search; see nearest.py

A shard exists once its JSON file, which is written last, exists; a build that was killed resumes with the next shard.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_jax.checkpoint.workdir import write_text
from vit_jax.config.hints import fits
from vit_jax.types import UserError

VERSION = 1
Vectors = Float[np.ndarray, "n d"]
ABOUT = {"version": int, "model": str, "feature": str, "fingerprint": str, "length": int, "per_image": int}
SHARD = {"root": str, "names": list[str], "labels": list[str], "unreadable": dict[str, str], "crc32": str}


@dataclasses.dataclass(frozen=True)
class About:
    """Describes the vectors of an index.

    model: the reference used to build it. feature: the output of Task.predict. fingerprint: of the weights and the
    preprocessing. length: of a vector. per_image: 1 for a pooled feature, else the number of patches.
    """

    model: str
    feature: str
    fingerprint: str
    length: int
    per_image: int
    version: int = VERSION


@dataclasses.dataclass(frozen=True)
class Shard:
    """The images of one shard: names relative to `root`, labels, and why other images of the folder have no vector."""

    root: str
    names: list[str]
    labels: list[str]
    unreadable: dict[str, str]
    crc32: str


class Index:
    """An open index: its vectors are memory-mapped, its names are in memory."""

    def __init__(self, folder: Path, about: About):
        self.folder, self.about = folder, about
        self.shards: list[Shard] = []
        self.parts: list[Vectors] = []
        while (path := self._path(len(self.shards), "json")).exists():
            self._open_shard(path)

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Open an index; raises UserError if it is missing or damaged."""
        path = folder / "index.json"
        if not path.exists():
            raise UserError(f"{folder} is no index: it has no index.json; build one with vit search build.")
        found = _read_json(path, ABOUT)
        if found["version"] != VERSION:
            raise UserError(
                f"{path} is of version {found['version']}; this vit_jax reads version {VERSION}: build it again."
            )
        if not (0 < found["length"] < 2**20 and 0 < found["per_image"] < 2**20):
            raise _damaged(path, "its lengths are out of range")
        return cls(folder, About(**{key: found[key] for key in ABOUT}))

    @classmethod
    def create(cls, folder: Path, about: About) -> "Index":
        """Create an index, or open an existing one; raises UserError if that is another model's."""
        path = folder / "index.json"
        if path.exists():
            index = cls.open(folder)
            index.check(about)
            return index
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(about), indent=1))
        return cls(folder, about)

    def check(self, about: About) -> None:
        """Raise UserError if vectors of `about` cannot be compared with the vectors of the index."""
        if self.about.feature != about.feature:
            raise UserError(
                f"{self.folder} has the feature {self.about.feature!r}; found {about.feature!r}: build another index for it."
            )
        if self.about.fingerprint != about.fingerprint:
            raise UserError(
                f"{self.folder} was built with {self.about.model}, with other weights or another preprocessing than "
                f"{about.model} has; their vectors cannot be compared: give that model, or build another index."
            )

    def append(self, shard: Shard, vectors: Vectors) -> None:
        """Add a shard; its JSON file, without which it does not exist, is written last."""
        assert len(vectors) == len(shard.names) * self.about.per_image
        number = len(self.shards)
        with open(self._path(number, "tmp"), "wb") as file:
            np.save(file, vectors.astype(np.float32), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._path(number, "tmp"), self._path(number, "npy"))
        shard = dataclasses.replace(shard, crc32=checksum(self._path(number, "npy")))
        write_text(self._path(number, "json"), json.dumps(dataclasses.asdict(shard)))
        self._open_shard(self._path(number, "json"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from adding to the index; raises UserError if one is already adding."""
        with open(self.folder / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.folder} is being built by another process; wait for its end.") from None
            yield

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of all images."""
        return [name for shard in self.shards for name in shard.names]

    @functools.cached_property
    def labels(self) -> list[str]:
        """The label of each image: the folder that it is in."""
        return [label for shard in self.shards for label in shard.labels]

    @property
    def known(self) -> set[tuple[str, str]]:
        """Root and name of all images, including unreadable ones."""
        return {(shard.root, name) for shard in self.shards for name in [*shard.names, *shard.unreadable]}

    @property
    def state(self) -> list[str]:
        """The checksums of the shards, from which the graph must have been built."""
        return [shard.crc32 for shard in self.shards]

    def path(self, image: int) -> Path:
        """Return the path of an image when the index was built."""
        for shard in self.shards:
            if image < len(shard.names):
                return Path(shard.root, shard.names[image])
            image -= len(shard.names)
        raise IndexError(image)

    def vectors(self, rows: np.ndarray) -> Vectors:
        """Return the vectors of these rows, from any shard."""
        ends = np.cumsum([0, *map(len, self.parts)])
        found = np.empty((len(rows), self.about.length), np.float32)
        for start, end, part in zip(ends, ends[1:], self.parts, strict=False):
            here = (rows >= start) & (rows < end)
            found[here] = part[rows[here] - start]
        return found

    def selected(self, folder: str | None, label: str | None) -> np.ndarray | None:
        """Return a mask of the images below a folder and with a label, None for all; raises UserError if none match."""
        if folder is None and label is None:
            return None
        prefix = "" if folder is None or folder.strip("/.") == "" else f"{folder.strip('/')}/"
        keep = [
            name.startswith(prefix) and (label is None or label == other)
            for name, other in zip(self.names, self.labels, strict=True)
        ]
        if not any(keep):
            labels = ", ".join(sorted(set(self.labels))[:10])
            raise UserError(
                f"No image of {self.folder} is in folder {folder!r} with label {label!r}; labels are {labels}."
            )
        return np.asarray(keep)

    def _open_shard(self, path: Path) -> None:
        found = _read_json(path, SHARD)
        vectors_path = path.with_suffix(".npy")
        if len(found["names"]) != len(found["labels"]) or not all(map(_is_inside, found["names"])):
            raise _damaged(path, "its names are not image paths below a folder")
        try:
            vectors = np.load(vectors_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(vectors_path, str(error)) from None
        shape = (len(found["names"]) * self.about.per_image, self.about.length)
        if vectors.shape != shape or vectors.dtype != np.float32:
            raise _damaged(
                vectors_path, f"it has {vectors.dtype} of shape {vectors.shape}, expected float32 of {shape}"
            )
        if checksum(vectors_path) != found["crc32"]:
            raise _damaged(vectors_path, "its checksum differs")
        self.shards.append(Shard(**{key: found[key] for key in SHARD}))
        self.parts.append(vectors)
        self.__dict__.pop("names", None)
        self.__dict__.pop("labels", None)

    def _path(self, number: int, ending: str) -> Path:
        return self.folder / "shards" / f"{number:06d}.{ending}"


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def checksum(path: Path) -> str:
    """Return the CRC-32 of a file in hexadecimal."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _read_json(path: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    for key, hint in hints.items():
        if not isinstance(found, dict) or not fits(found.get(key), hint):
            raise _damaged(path, f"it has no fitting {key!r}")
    return found


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged ({reason}). Remove this shard and all after it, or the whole index, and build again; vit search build "
        "computes only what is missing."
    )


def unit(vectors: Sequence[Any] | np.ndarray) -> Vectors:
    """Normalize vectors to length 1, in float32."""
    found = np.asarray(vectors, np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
