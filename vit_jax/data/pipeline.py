"""Make batches of examples: as a function of (seed, step) for training, each example once for evaluation."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import grain
import numpy as np

from vit_jax.chips import host_memory
from vit_jax.data.examples import Arrays, Layout, Reader
from vit_jax.data.source import Fields, Source, class_names_of
from vit_jax.data.workers import Workers
from vit_jax.types import BatchSize, Count, Fraction, Megabytes, Seed, Threads, UserError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Describes a transformed data set for the rest of the program.

    layout: shape and dtype of each array of an example. fields: the field of each key of an example.
    """

    layout: Layout
    num_examples: int
    fields: Fields

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes or numbers of the first label."""
        return class_names_of(self.fields)


class _Data:
    """The parts shared by training and evaluation: the reader, this process's rows and the worker threads.

    rows: the rows of each global batch that this process reads, or None for all of them.
    """

    remedy = "repair or remove them"  # for too many unreadable examples

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize,
        rows: Sequence[int] | None = None,
        threads: Threads = 2,
        prefetch: Threads = 4,
        cache_mb: Megabytes = 2048,
        max_unreadable: Fraction = 0.01,
    ):
        if batch_size < 1:
            raise UserError(f"Found batch_size={batch_size}, expected at least 1: change batch_size.")
        if min(threads, prefetch, cache_mb) < 0 or not 0 <= max_unreadable <= 1:
            raise UserError(
                f"Found threads={threads}, prefetch={prefetch}, cache_mb={cache_mb}, max_unreadable={max_unreadable}, "
                "expected three numbers of at least 0 and a share between 0 and 1: correct those outside."
            )
        self._reader = Reader(source, preprocess, cache_mb, max_unreadable, self.remedy)
        self.spec = DataSpec(self._reader.layout, len(source), self._reader.fields)
        self.batch_size = batch_size
        self._check_memory(len(rows) if rows is not None else batch_size, prefetch)
        self._rows = tuple(range(batch_size) if rows is None else rows)
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)

    @property
    def max_unreadable(self) -> float:
        """The share of the examples that may be unreadable."""
        return self._reader.max_unreadable

    def allow_unreadable(self, share: float) -> None:
        """Let this share of the examples be unreadable, as data.max_unreadable says."""
        self._reader.max_unreadable, self._reader.remedy = share, TrainData.remedy

    def _check_memory(self, rows: int, prefetch: int) -> None:
        """Raise UserError if the batches made ahead do not fit into this machine's memory."""
        batch = rows * sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in self._reader.layout.values())
        if (prefetch + 1) * batch > host_memory():
            raise UserError(
                f"Found batches of {batch / 2**30:.1f} GiB in this process, with prefetch={prefetch} of them ahead; expected at "
                f"most the {host_memory() / 2**30:.1f} GiB of this machine: lower batch_size or, in training, data.prefetch."
            )

    @property
    def source(self) -> Source:
        """The examples before the transforms."""
        return self._reader.source

    @property
    def unreadable(self) -> dict[str, str]:
        """Name -> reason of every unreadable example found so far."""
        return self._reader.unreadable

    def _empty_batch(self) -> Batch:
        return {key: np.zeros((len(self._rows), *x.shape), x.dtype) for key, x in self._reader.layout.items()}

    def _in_threads(self, make_batch: Callable[[int], Batch], start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield make_batch(start), ..., make_batch(stop - 1) in order, computed ahead of time in threads."""
        if start >= stop:
            return
        batches = grain.MapDataset.range(start, stop).map(make_batch).to_iter_dataset(self._options)
        iterator = iter(batches)
        try:
            yield from iterator
        finally:
            iterator.close()  # a consumer that stops early leaves no running threads


class TrainData(_Data):
    """Endless shuffled batches: a function of (seed, step) only, whatever came before and for any number of processes.

    The example at global position p = step * batch_size + row follows the epoch order of p // repeats; its augmentation
    is drawn from a generator keyed by (seed, p), so that the `repeats` consecutive copies of an image differ (repeated
    augmentation, arXiv:1901.09335; each image is seen `repeats` times in as many epochs. DeiT's sampler instead
    shuffles every epoch and shows a random 1 / repeats of its images). An unreadable example is replaced by the next
    readable one in the epoch order. With `workers`, that many processes make the batches instead of the threads.
    """

    # Arrays kept on the devices, and the function that turns a batch into the one the task prepares; see ResidentData.
    device_arrays: Mapping[str, np.ndarray] = {}
    remedy = "repair or remove them, or raise data.max_unreadable"
    fetch: Callable | None = None

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize,
        seed: Seed,
        rows: Sequence[int] | None = None,
        threads: Threads = 2,
        prefetch: Threads = 4,
        cache_mb: Megabytes = 2048,
        max_unreadable: Fraction = 0.01,
        repeats: Count = 1,
        workers: Threads = 0,
    ):
        if not 0 <= seed < 2**32:
            raise UserError(f"Found seed={seed}, expected 0 <= seed < 2**32: choose another seed.")
        super().__init__(source, preprocess, batch_size, rows, threads, prefetch, cache_mb, max_unreadable)
        if repeats < 1:
            raise UserError(f"Found repeats={repeats}, expected a number of at least 1: change data.repeats.")
        if workers < 0:
            raise UserError(f"Found workers={workers}, expected a number of at least 0: change data.workers.")
        self._seed, self._repeats = seed, repeats
        self._workers, self._slots = workers, prefetch + 1
        self._worker_args = (source, preprocess, cache_mb * 2**20, seed)
        self._order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

    @property
    def layout(self) -> Layout:
        """Shape and dtype of each array of a row of the batches."""
        return self._reader.layout

    def from_step(self, step: int, until: int) -> Generator[tuple[int, Batch], None, None]:
        """Yield (k, {key: array [rows, ...]}) for step <= k < until."""
        batches = self._in_workers(step, until) if self._workers else self._in_threads(self._make_batch, step, until)
        with contextlib.closing(batches):
            yield from zip(range(step, until), batches, strict=True)

    def _make_batch(self, step: int) -> Batch:
        batch = self._empty_batch()
        for row, position in enumerate(self._positions(step)):
            _fill_row(batch, row, self._example(position))
        return batch

    def _positions(self, step: int) -> list[int]:
        """Return the global positions of this process's rows."""
        return [step * self.batch_size + row for row in self._rows]

    def _in_workers(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Like `_in_threads`. Rows unreadable to a worker are counted and replaced here, where all are known."""
        workers = Workers(*self._worker_args, self._empty_batch(), self._workers, self._slots)
        with contextlib.closing(workers):
            begun = start
            for step in range(start, stop):
                while begun < min(stop, step + self._slots):
                    rows = [(row, self._index(p), p) for row, p in enumerate(self._positions(begun))]
                    workers.begin(begun % self._slots, rows)
                    begun += 1
                batch, unreadable = workers.finish(step % self._slots)
                for row, index, reason in unreadable:
                    self._reader.record(index, reason)
                    _fill_row(batch, row, self._example(self._positions(step)[row]))
                yield batch

    def _index(self, position: int, ahead: int = 0) -> int:
        """Return the example at a global position, or `ahead` positions later in its epoch's order, which wraps."""
        epoch, within = divmod(position // self._repeats, self.spec.num_examples)
        return self._order[epoch * self.spec.num_examples + (within + ahead) % self.spec.num_examples]

    def _example(self, position: int) -> Arrays:
        """Return the arrays of the example at one global position."""
        for ahead in range(self.spec.num_examples):
            example = self._reader.read(self._index(position, ahead), self._seed, position)
            if example is not None:
                return example
        raise self._reader.too_many_unreadable()


def _fill_row(batch: Batch, row: int, example: Arrays) -> None:
    for key, array in example.items():
        batch[key][row] = array


class EvalData(_Data):
    """Every example exactly once over all processes, in order; the last batch is padded with masked zeros.

    Yields the arrays of the examples with "mask" bool [rows] and "index" int32 [rows]. All processes yield the same
    number of batches, all of the same shape. Unreadable examples are masked too.
    """

    def shard(self, rows_of: Callable[[int], Sequence[int]]) -> None:
        """Read the rows rows_of(batch_size), possibly of a larger padded batch; rows beyond the batch are masked."""
        self._rows = tuple(rows_of(self.batch_size))

    def example(self, index: int) -> Arrays:
        """Return one example that was readable before."""
        example = self._reader.read(index, 0, index)
        assert example is not None
        return example

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
            example = self._reader.read(index, 0, index)
            if example is not None:
                batch["mask"][place] = True
                _fill_row(batch, place, self.transformed(example, index))
        return batch

    def transformed(self, example: Arrays, index: int) -> Arrays:
        """Return an example as it is evaluated; a subclass may change it."""
        return example
