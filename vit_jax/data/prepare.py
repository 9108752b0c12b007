"""Write a dataset in TFDS's layout as array_record, for fast random access."""

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

from vit_jax.data.decode import decode, is_made_for_parts
from vit_jax.data.jpeg_parts import with_restarts
from vit_jax.data.source import UnreadableImage
from vit_jax.data.transforms.ops import resize_small
from vit_jax.printable import line
from vit_jax.types import UserError

# Reading many files is as fast as reading few; files of this size can be copied one at a time.
SHARD_BYTES = 256 * 2**20
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # TFDS's file names
UNREADABLE = "unreadable.txt"

# Returns a serialized tf.train.Example, in any thread; raises UnreadableImage.
MakeExample = Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class SplitExamples:
    """The examples of a split in order, each with a name used in messages."""

    name: str
    size: int
    examples: Iterable[tuple[str, MakeExample]]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset to write.

    Attributes:
      path: its folder below data_dir.
      info: TFDS's DatasetInfo proto.
      splits: its examples.
      write_metadata: writes the other files, such as features.json, into a folder.
      notes: remarks for the user.
    """

    path: Path
    info: Any
    splits: list[SplitExamples]
    write_metadata: Callable[[Path], object]
    notes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """The number of examples."""
        return sum(split.size for split in self.splits)


@dataclasses.dataclass
class Rewrite:
    """Shrink images whose shorter side exceeds `min_side` pixels, if it is set.

    fast_crops: write JPEG files of which parts can be decoded (jpeg_parts), with the same pixels, where that is possible;
    `made` has an entry for each of them.
    """

    min_side: int | None = None
    quality: int = 95
    fast_crops: bool = False
    made: list[None] = dataclasses.field(default_factory=list)

    def __call__(self, data: bytes) -> bytes:
        """Return the file with the same pixels, or the image resized by resize_small as JPEG; raises UnreadableImage."""
        pixels = decode(data)
        if self.min_side is not None and min(pixels.shape[:2]) > self.min_side:
            data = self._encoded(np.ascontiguousarray(resize_small(self.min_side)(pixels, np.random.default_rng(0))))
        if self.fast_crops and data[:2] == b"\xff\xd8":
            other = with_restarts(data)
            if is_made_for_parts(other) and _same_pixels(other, data):
                self.made.append(None)  # from several threads
                return other
        return data

    @property
    def changes(self) -> bool:
        """Whether files may change."""
        return self.min_side is not None or self.fast_crops

    def _encoded(self, small: np.ndarray) -> bytes:
        if (small == small[:, :, :1]).all():
            return simplejpeg.encode_jpeg(small[:, :, :1].copy(), self.quality, "GRAY", "Gray")
        # Photographs usually have chroma at half resolution, which also decodes a third faster.
        return simplejpeg.encode_jpeg(small, self.quality, "RGB", "420")


def _same_pixels(one: bytes, other: bytes) -> bool:
    try:
        return np.array_equal(decode(one), decode(other))
    except UnreadableImage:
        return False


def write(
    dataset: Dataset, data_dir: Path, *, threads: int, max_unreadable: float, progress: Callable[[int], object]
) -> dict[str, str]:
    """Write a dataset into its folder of `data_dir`; return the names of unreadable images and the reasons.

    These images are omitted and listed in UNREADABLE. The folder's name ends in .partial until it is complete. `progress` is
    called with the number of examples done. Raises UserError if the folder exists or cannot be written, or if more than
    one image and more than the fraction `max_unreadable` are unreadable.
    """
    unreadable: dict[str, str] = {}
    allowed = max(1, round(max_unreadable * dataset.size, 6))
    done = 0
    with _partial(data_dir / dataset.path) as folder:
        with _write_errors(folder):
            dataset.write_metadata(folder)
        info = dataset.info
        info.file_format = "array_record"
        info.ClearField("alternative_file_formats")
        info.ClearField("splits")
        for split in dataset.splits:
            shards = _Shards(folder, f"{info.name}-{split.name}.array_record")
            for name, future in _in_order(split.examples, threads):
                try:
                    shards.write(future.result())
                except UnreadableImage as error:
                    unreadable[line(name)] = str(error)
                    path = folder / UNREADABLE
                    with _write_errors(folder), open(path, "a", encoding="utf-8") as file:
                        file.write(f"{line(name)}: {error}\n")
                    if len(unreadable) > allowed:
                        raise _too_many(unreadable, dataset.size, max_unreadable) from None
                done += 1
                progress(done)
            shards.close()
            info.splits.add(
                name=split.name, shard_lengths=shards.lengths, num_bytes=sum(shards.sizes), filepath_template=TEMPLATE
            )
        with _write_errors(folder):
            _write_info(info, folder)
    return unreadable


def _write_info(info: Any, folder: Path) -> None:
    """Write dataset_info.json, by which TFDS recognizes a dataset, and flush all files to disk."""
    import tensorflow_datasets as tfds

    tfds.core.dataset_info.write_dataset_info_proto(info, folder)
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _too_many(unreadable: dict[str, str], size: int, limit: float) -> UserError:
    examples = "; ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[-3:])
    return UserError(
        f"{len(unreadable)} of {size} images are unreadable, expected at most {limit:.2%}; repair or remove them, or raise "
        f"--max_unreadable. For example: {examples}"
    )


def _in_order(examples: Iterable[tuple[str, MakeExample]], threads: int) -> Iterator[tuple[str, Future[bytes]]]:
    """Make examples in threads, with some read-ahead, and yield them in order."""
    pool = ThreadPoolExecutor(threads)
    pending: collections.deque[tuple[str, Future[bytes]]] = collections.deque()
    try:
        for name, make in examples:
            pending.append((name, pool.submit(make)))
            if len(pending) > 4 * threads:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Yield a new folder and rename it to `target` on success; the folder of a killed run is replaced."""
    if os.path.lexists(target):
        raise UserError(f"{target} already exists; remove it, or give another --out or --name.")
    folder = target.with_name(target.name + ".partial")
    with _write_errors(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        parent = os.open(target.parent, os.O_RDONLY)
    try:
        _lock(parent, target)
        with _write_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
        yield folder
        with _write_errors(folder):
            os.rename(folder, target)
            os.fsync(parent)
    finally:
        os.close(parent)


def _lock(folder: int, target: Path) -> None:
    """Lock a folder against other runs until this process ends."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"Another run is writing {target}; wait until it ends, or give another --out.") from error
    except OSError:
        return  # some network file systems do not support locks


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turn errors when writing to a folder, such as a full disk, into UserErrors."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
        raise UserError(
            f"{folder} cannot be written ({getattr(error, 'strerror', None) or error}); free space there, or give another "
            "--out, and run the same command again."
        ) from error


class _Shards:
    """Writes the records of a split into files of about SHARD_BYTES, which are renamed once their number is known."""

    def __init__(self, folder: Path, stem: str):
        self._folder, self._stem = folder, stem
        self._writer: Any = None
        self.lengths: list[int] = []
        self.sizes: list[int] = []

    def write(self, record: bytes) -> None:
        """Add a record."""
        if self._writer is None or 0 < self.sizes[-1] > SHARD_BYTES - len(record):
            self._open()
        with _write_errors(self._folder):
            self._writer.write(record)
        self.lengths[-1] += 1
        self.sizes[-1] += len(record)

    def close(self) -> None:
        """Close the last file, rename all files and check their numbers of records."""
        if self._writer is None:
            self._open()  # TFDS expects a file even if there are no records
        with _write_errors(self._folder):
            self._writer.close()
            for number, length in enumerate(self.lengths):
                path = self._folder / f"{self._stem}-{number:05d}-of-{len(self.lengths):05d}"
                os.rename(self._path(number), path)
                reader = ArrayRecordReader(str(path), "")
                if reader.num_records() != length:
                    raise OSError(f"{path} has {reader.num_records()} records, expected {length}")
                reader.close()

    def _open(self) -> None:
        with _write_errors(self._folder):
            if self._writer is not None:
                self._writer.close()
            # TFDS requires groups of one record for random access.
            self._writer = ArrayRecordWriter(str(self._path(len(self.lengths))), "group_size:1")
        self.lengths.append(0)
        self.sizes.append(0)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._stem}-{number:05d}"
