"""Batches of preprocessed images: for training a function of (seed, step), for evaluation each example once."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Sequence

import grain
import numpy as np

from vit_jax.data.reader import Reader
from vit_jax.data.source import Label, Source
from vit_jax.data.workers import Workers
from vit_jax.types import UserError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the rest of the program must know about a data set; image_shape is (h, w, c) after preprocessing.

    label_shape: () where an example has one class, (n,) where it has a number for each of n names.
    """

    image_shape: tuple[int, int, int]
    num_examples: int
    class_names: tuple[str, ...]
    label_shape: tuple[int, ...] = ()


class _Data:
    """What training and evaluation share: the reader, this process's rows and the worker threads.

    `rows` are those of each global batch that this process takes; None is all.
    """

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: int,
        rows: Sequence[int] | None = None,
        threads: int = 2,
        prefetch: int = 4,
        cache_mb: int = 2048,
        max_unreadable: float = 0.01,
    ):
        if batch_size < 1:
            raise UserError(f"Found batch_size={batch_size}, expected at least 1: change batch_size.")
        if min(threads, prefetch, cache_mb) < 0 or not 0 <= max_unreadable <= 1:
            raise UserError(
                f"Found threads={threads}, prefetch={prefetch}, cache_mb={cache_mb}, max_unreadable={max_unreadable}, "
                "expected three numbers of at least 0 and a share between 0 and 1: correct those outside."
            )
        self._reader = Reader(source, preprocess, cache_mb, max_unreadable)
        self.spec = Spec(self._reader.image_shape, len(source), tuple(source.class_names), source.label_shape)
        self.batch_size = batch_size
        self._rows = tuple(range(batch_size) if rows is None else rows)
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)

    @property
    def unreadable(self) -> dict[str, str]:
        """Name -> reason of every unreadable image met so far."""
        return self._reader.unreadable

    def _empty_batch(self) -> Batch:
        numbers = self.spec.label_shape
        return {
            "image": np.zeros((len(self._rows), *self.spec.image_shape), np.uint8),
            "label": np.zeros((len(self._rows), *numbers), np.float32 if numbers else np.int32),
        }

    def _in_threads(self, make_batch: Callable[[int], Batch], start: int, stop: int) -> Generator[Batch, None, None]:
        """make_batch(start), ..., make_batch(stop - 1), in order, made ahead of need in threads."""
        if start >= stop:
            return
        batches = grain.MapDataset.range(start, stop).map(make_batch).to_iter_dataset(self._options)
        iterator = iter(batches)
        try:
            yield from iterator
        finally:
            iterator.close()  # a consumer that stops early leaves no threads behind


class TrainData(_Data):
    """Endless shuffled batches: a function of (seed, step) alone, whatever came before and however many processes.

    The example at global position p = step * batch_size + row is given by the order of the epoch of p // repeats; its
    augmentation is drawn from a generator keyed by (seed, p), so that the `repeats` copies of an image that follow one another
    differ (repeated augmentation, arXiv:1901.09335; each image is seen `repeats` times in as many epochs). An unreadable image
    is replaced by the next readable one of that epoch's order. With `workers` so many processes make the batches instead of
    the threads.
    """

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
        threads: int = 2,
        prefetch: int = 4,
        cache_mb: int = 2048,
        max_unreadable: float = 0.01,
        repeats: int = 1,
        workers: int = 0,
    ):
        if not 0 <= seed < 2**32:
            raise UserError(f"Found seed={seed}, expected 0 <= seed < 2**32: choose another seed.")
        if len(source.class_names) == 1 and not source.label_shape:
            raise UserError(
                f"Found one class only to train on ({source.class_names[0]}), expected at least two: check the path, or add "
                "the images of the other classes in folders of their own."
            )
        super().__init__(source, preprocess, batch_size, rows, threads, prefetch, cache_mb, max_unreadable)
        if repeats < 1:
            raise UserError(f"Found repeats={repeats}, expected a number of at least 1: change data.repeats.")
        if workers < 0:
            raise UserError(f"Found workers={workers}, expected a number of at least 0: change data.workers.")
        self._seed, self._repeats = seed, repeats
        self._workers, self._slots = workers, prefetch + 1
        self._task = (source, preprocess, cache_mb * 2**20, seed)  # what a worker is told
        self._order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

    def from_step(self, step: int, until: int) -> Generator[tuple[int, Batch], None, None]:
        """Yields (k, {"image": uint8 [rows, h, w, c], "label": int32 [rows] or float32 [rows, n]}), step <= k < until."""
        batches = self._in_workers(step, until) if self._workers else self._in_threads(self._make_batch, step, until)
        with contextlib.closing(batches):
            yield from zip(range(step, until), batches, strict=True)

    def _make_batch(self, step: int) -> Batch:
        batch = self._empty_batch()
        for place, position in enumerate(self._positions(step)):
            batch["image"][place], batch["label"][place] = self._example(position)
        return batch

    def _positions(self, step: int) -> list[int]:
        """The global positions of this process's rows."""
        return [step * self.batch_size + row for row in self._rows]

    def _in_workers(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """As `_in_threads`. What a worker cannot read is counted and replaced here, where all that is known of it is."""
        workers = Workers(*self._task, self._empty_batch(), self._workers, self._slots)
        with contextlib.closing(workers):
            begun = start
            for step in range(start, stop):
                while begun < min(stop, step + self._slots):
                    rows = [(place, self._index(p), p) for place, p in enumerate(self._positions(begun))]
                    workers.begin(begun % self._slots, rows)
                    begun += 1
                batch, unreadable = workers.finish(step % self._slots)
                for place, index, reason in unreadable:
                    self._reader.record(index, reason)
                    batch["image"][place], batch["label"][place] = self._example(self._positions(step)[place])
                yield batch

    def _index(self, position: int, ahead: int = 0) -> int:
        """The example at a global position, or so many places further in the order of its epoch, which goes round."""
        epoch, within = divmod(position // self._repeats, self.spec.num_examples)
        return self._order[epoch * self.spec.num_examples + (within + ahead) % self.spec.num_examples]

    def _example(self, position: int) -> tuple[np.ndarray, Label]:
        """The preprocessed image and label for one global position."""
        for ahead in range(self.spec.num_examples):
            index = self._index(position, ahead)
            image = self._reader.read(index, self._seed, position)
            if image is not None:
                return image, self._reader.source.label(index)
        raise self._reader.too_many_unreadable()


class EvalData(_Data):
    """Every example exactly once over all processes, in order; the last batch is filled up with masked zeros.

    Yields {"image": uint8 [rows, h, w, c], "label": int32 [rows], "mask": bool [rows], "index": int32 [rows]}. All
    processes yield the same number of batches, all of one shape. An unreadable image is masked too.
    """

    def divide(self, rows_of: Callable[[int], Sequence[int]]) -> None:
        """Takes the rows that rows_of(batch_size) gives, of a batch that may be larger; what is beyond is masked."""
        self._rows = tuple(rows_of(self.batch_size))

    def image(self, index: int) -> np.ndarray:
        """One preprocessed image, which was readable before."""
        image = self._reader.read(index, 0, index)
        assert image is not None
        return image

    def __len__(self) -> int:
        return math.ceil(self.spec.num_examples / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._in_threads(self._make_batch, 0, len(self))

    def _make_batch(self, step: int) -> Batch:
        batch = self._empty_batch()
        batch["mask"] = np.zeros(len(self._rows), bool)
        batch["index"] = np.zeros(len(self._rows), np.int32)
        for place, row in enumerate(self._rows):
            index = step * self.batch_size + row
            if row >= self.batch_size or index >= self.spec.num_examples:
                continue
            batch["index"][place] = index
            image = self._reader.read(index, 0, index)
            if image is not None:
                batch["image"][place], batch["mask"][place] = image, True
                batch["label"][place] = self._reader.source.label(index)
        return batch
