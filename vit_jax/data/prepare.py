"""Writes a data set once in the layout of TFDS, as array_record, which can be read in any order at speed."""

import collections
import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from vit_jax.data.decode import decode
from vit_jax.data.source import UnreadableImage
from vit_jax.data.transforms.ops import resize_small
from vit_jax.types import UserError

# Random access makes no difference between few files and many; these can be copied and sent one at a time.
SHARD_BYTES = 256 * 2**20
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # the name of a file, as TFDS writes it
UNREADABLE = "unreadable.txt"

# Makes the bytes of one tf.train.Example, in any thread; raises UnreadableImage.
Make = Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split in their order, each with a name for messages."""

    name: str
    size: int
    examples: Iterable[tuple[str, Make]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to write: where in data_dir, TFDS's dataset_info, the splits, and what writes the other files."""

    place: Path
    info: Any
    splits: list[Split]
    describe: Callable[[Path], object]
    notes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """The number of examples."""
        return sum(split.size for split in self.splits)


@dataclasses.dataclass
class Bound:
    """Makes images smaller whose shorter side has more than `min_side` pixels; None leaves them all as they are."""

    min_side: int | None = None
    quality: int = 95

    def __call__(self, data: bytes) -> bytes:
        """The file itself, or a JPEG file of the picture as resize_small makes it; raises UnreadableImage."""
        pixels = decode(data)
        if self.min_side is None or min(pixels.shape[:2]) <= self.min_side:
            return data
        small = np.ascontiguousarray(resize_small(self.min_side)(pixels, np.random.default_rng(0)))
        if (small == small[:, :, :1]).all():
            return simplejpeg.encode_jpeg(small[:, :, :1].copy(), self.quality, "GRAY", "Gray")
        # Colour at half resolution as in most photographs, which is read a third faster.
        return simplejpeg.encode_jpeg(small, self.quality, "RGB", "420")


def write(
    plan: Plan, data_dir: Path, *, threads: int, max_unreadable: float, progress: Callable[[int], object]
) -> dict[str, str]:
    """Writes the plan into its place in `data_dir`; gives the images left out and why, which it also lists beside.

    The folder has a name that ends in .partial until it is whole. `progress` is told the number of examples done.
    Raises UserError if the place is taken, cannot be written to, or if more images are unreadable than the share
    `max_unreadable`, though one may be in any case.
    """
    unreadable: dict[str, str] = {}
    allowed = max(1, round(max_unreadable * plan.size, 6))
    done = 0
    with _partial(data_dir / plan.place) as folder:
        with _room(folder):
            plan.describe(folder)
        plan.info.file_format = "array_record"
        plan.info.ClearField("alternative_file_formats")
        plan.info.ClearField("splits")
        for split in plan.splits:
            shards = _Shards(folder, f"{plan.info.name}-{split.name}.array_record")
            for name, future in _in_order(split.examples, threads):
                try:
                    shards.write(future.result())
                except UnreadableImage as error:
                    unreadable[name] = str(error)
                    with _room(folder), open(folder / UNREADABLE, "a", encoding="utf-8", errors="replace") as file:
                        file.write(f"{name}: {error}\n")
                    if len(unreadable) > allowed:
                        raise _too_many(unreadable, plan.size, max_unreadable) from None
                done += 1
                progress(done)
            shards.close()
            plan.info.splits.add(
                name=split.name, shard_lengths=shards.lengths, num_bytes=sum(shards.sizes), filepath_template=TEMPLATE
            )
        with _room(folder):
            _write_info(plan.info, folder)
    return unreadable


def _write_info(info: Any, folder: Path) -> None:
    """The file that makes a folder a data set of TFDS; then everything is brought to the disk."""
    import tensorflow_datasets as tfds

    tfds.core.dataset_info.write_dataset_info_proto(info, folder)
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _too_many(unreadable: dict[str, str], size: int, share: float) -> UserError:
    files = "; ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[-3:])
    return UserError(
        f"Found {len(unreadable)} unreadable images among {size}, expected at most {share:.2%}: repair or remove them, "
        f"or raise --max_unreadable. For example: {files}"
    )


def _in_order(examples: Iterable[tuple[str, Make]], threads: int) -> Iterator[tuple[str, Future[bytes]]]:
    """Makes examples in threads, some ahead of need, and gives them in the order in which they came."""
    pool = ThreadPoolExecutor(threads)
    begun: collections.deque[tuple[str, Future[bytes]]] = collections.deque()
    try:
        for name, make in examples:
            begun.append((name, pool.submit(make)))
            if len(begun) > 4 * threads:
                yield begun.popleft()
        yield from begun
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` once all has gone well; what a killed run left is replaced."""
    if os.path.lexists(target):
        raise UserError(
            f"Found {target} already there, expected a new folder: remove it, or give another --out or --name."
        )
    folder = target.with_name(target.name + ".partial")
    with _room(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        parent = os.open(target.parent, os.O_RDONLY)
    try:
        _lock(parent, target)
        with _room(folder):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
        yield folder
        with _room(folder):
            os.rename(folder, target)
            os.fsync(parent)
    finally:
        os.close(parent)


def _lock(folder: int, target: Path) -> None:
    """Keeps other runs out of a folder until this process ends, however that ends."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"Found another run that writes {target}: wait for its end, or give another --out.") from error
    except OSError:
        return  # some network file systems have no locks


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Tells what keeps a folder from being written to, such as a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises the latter
        raise UserError(
            f"Found no way to write into {folder} ({getattr(error, 'strerror', None) or error}), expected a folder with "
            "room for the data set: make room there, or give another --out, and run the same command again."
        ) from error


class _Shards:
    """Writes the records of a split into files of about SHARD_BYTES, which get their names when all are counted."""

    def __init__(self, folder: Path, stem: str):
        self._folder, self._stem = folder, stem
        self._writer: Any = None
        self.lengths: list[int] = []
        self.sizes: list[int] = []

    def write(self, record: bytes) -> None:
        """Adds a record."""
        if self._writer is None or 0 < self.sizes[-1] > SHARD_BYTES - len(record):
            self._begin()
        with _room(self._folder):
            self._writer.write(record)
        self.lengths[-1] += 1
        self.sizes[-1] += len(record)

    def close(self) -> None:
        """Ends the last file, names all of them, and looks whether every record can be found."""
        if self._writer is None:
            self._begin()  # TFDS wants a file even where there are no records
        with _room(self._folder):
            self._writer.close()
            for number, length in enumerate(self.lengths):
                path = self._folder / f"{self._stem}-{number:05d}-of-{len(self.lengths):05d}"
                os.rename(self._path(number), path)
                reader = ArrayRecordReader(str(path), "")
                if reader.num_records() != length:
                    raise OSError(f"{path} has {reader.num_records()} records of {length}")
                reader.close()

    def _begin(self) -> None:
        with _room(self._folder):
            if self._writer is not None:
                self._writer.close()
            # One record for each read, as TFDS requires of files with random access.
            self._writer = ArrayRecordWriter(str(self._path(len(self.lengths))), "group_size:1")
        self.lengths.append(0)
        self.sizes.append(0)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._stem}-{number:05d}"
