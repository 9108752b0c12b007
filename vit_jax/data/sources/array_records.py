"""Read ArrayRecord files in random order."""

import bisect
import itertools
import threading
from collections.abc import Sequence

from array_record.python.array_record_module import ArrayRecordReader


class ArrayRecords:
    """The records of several files as one sequence: for each (path, skip, take), `take` records after the first `skip`.

    Thread-safe. Reading a record raises RuntimeError if its file is damaged or missing.
    """

    def __init__(self, parts: Sequence[tuple[str, int, int]]):
        self._parts = parts
        self._ends = list(itertools.accumulate(take for _, _, take in parts))
        self._readers: list[ArrayRecordReader | None] = [None] * len(parts)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["ArrayRecords"], tuple[Sequence[tuple[str, int, int]]]]:
        return ArrayRecords, (self._parts,)  # another process opens the files itself

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, index)
        _, skip, take = self._parts[part]
        position = skip + index - (self._ends[part] - take)
        # A range is read in this thread; a list of indices is read by other threads, which takes twenty times as long.
        return self._reader(part).read(position, position + 1)[0]

    def _reader(self, part: int) -> ArrayRecordReader:
        """Return the reader of a file, opened on first use since there may be many."""
        if self._readers[part] is None:
            with self._lock:
                if self._readers[part] is None:
                    path, skip, take = self._parts[part]
                    # Random access gains nothing from read-ahead or a large buffer.
                    options = "readahead_buffer_size:0,max_parallelism:0"
                    reader = ArrayRecordReader(path, options, file_reader_buffer_size=2**15)
                    if reader.num_records() < skip + take:  # the reader reports missing and truncated files like this
                        raise RuntimeError(f"found {reader.num_records()} records in {path}, expected {skip + take}")
                    self._readers[part] = reader
        return self._readers[part]
