"""Read and prepare images in processes, for hosts with so many cores that threads wait for Python's lock.

A worker writes its rows directly into memory shared with the run. That memory is an unnamed file, and a worker exits
when its socket closes: neither outlives the run, however it ends. No worker imports jax.
"""

import contextlib
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np

from vit_jax.data.examples import Array, Examples
from vit_jax.data.source import Source, UnreadableImage
from vit_jax.types import UserError

# The code of a worker; the arguments are its socket, the shared memory and the module search path.
COMMAND = (
    "import sys; sys.path[:] = sys.argv[3:]; from vit_jax.data.workers import serve; serve(*map(int, sys.argv[1:3]))"
)
# Each worker uses one thread; libraries would otherwise start one per core in each worker.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ENDING_SECONDS = 10

Arrays = dict[str, np.ndarray]
# (row in the batch, index of the example, global position)
Row = tuple[int, int, int]


class Workers:
    """`count` processes that fill batches like `batch`, up to `slots` at once; close them after use.

    They take the memory of `slots` batches, and each worker keeps a cache of cache_bytes / count. An example always
    goes to the same worker, so that it is cached once. Raises UserError if a worker raises one or exits, or if the
    source cannot be sent.
    """

    def __init__(
        self, source: Source, preprocess: str, cache_bytes: int, seed: int, batch: Arrays, count: int, slots: int
    ):
        layout = {key: ((slots, *array.shape), array.dtype.str) for key, array in batch.items()}
        try:
            examples = {key: Array(array.shape[1:], array.dtype.name) for key, array in batch.items()}
            task = pickle.dumps((source, preprocess, cache_bytes // count, examples, seed, layout))
        except Exception as error:  # pickle raises any error of the objects inside
            raise UserError(
                f"Found a source of type {type(source).__name__} that cannot be sent to other processes ({error}): set "
                "data.workers=0, or give the source only parts that can be pickled."
            ) from error
        self._processes: list[subprocess.Popen] = []
        self._sockets: list[Connection] = []
        with _anonymous_file(_size(layout)) as file:
            self._slots = _arrays(file.fileno(), layout)
            try:
                for _ in range(count):
                    self._start(file.fileno())
                for number in range(count):
                    self._send(number, task)
            except BaseException:
                self.close()
                raise

    def _start(self, memory: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", COMMAND, *map(str, (theirs.fileno(), memory)), *sys.path]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), memory), env={**os.environ, **ONE_THREAD}
            )
        self._processes.append(process)
        self._sockets.append(Connection(ours.detach()))

    def begin(self, slot: int, rows: Iterable[Row]) -> None:
        """Request these rows of a batch in a slot; `finish` must have returned the slot's previous batch."""
        shares: list[list[Row]] = [[] for _ in self._processes]
        for row in rows:
            shares[row[1] % len(shares)].append(row)
        for number, share in enumerate(shares):
            self._send(number, pickle.dumps((slot, share)))

    def finish(self, slot: int) -> tuple[Arrays, list[tuple[int, int, str]]]:
        """Wait for the batch in `slot`; return a copy of it, and the rows left out as (row, index, reason)."""
        unreadable = []
        for number in range(len(self._processes)):
            unreadable += self._receive(number)
        return {key: array[slot].copy() for key, array in self._slots.items()}, sorted(unreadable)

    def _send(self, number: int, message: bytes) -> None:
        with self._alive(number):
            try:
                self._sockets[number].send_bytes(message)
            except OSError:
                while True:  # until the message with the worker's error, if it sent one
                    self._receive(number)

    def _receive(self, number: int) -> list[tuple[int, int, str]]:
        with self._alive(number):
            kind, answer = self._sockets[number].recv()
        if kind == "done":
            return answer
        raise UserError(answer) if kind == "mistake" else RuntimeError(f"in a data worker:\n{answer}")

    @contextlib.contextmanager
    def _alive(self, number: int) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            try:
                code = self._processes[number].wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
            raise UserError(
                f"Found that data worker {number + 1} of {len(self._processes)} {how}, expected it to run until the end: "
                "if memory ran out, lower data.workers, data.prefetch or data.cache_mb."
            ) from error

    def close(self) -> None:
        """Stop the workers, killing those that do not exit by themselves."""
        for connection in self._sockets:
            connection.close()
        for process in self._processes:
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve(connection: int, memory: int) -> None:
    """Run a worker until its socket closes. Signals to the process group are handled by the run, not here."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # When the run ends, the socket reaches its end or can no longer be written to.
    with contextlib.suppress(EOFError, OSError), Connection(connection) as run:
        try:
            source, preprocess, cache_bytes, arrays, seed, layout = _received(run.recv_bytes())
            examples, slots = Examples(source, preprocess, cache_bytes, arrays), _arrays(memory, layout)
            while True:
                slot, rows = run.recv()
                run.send(("done", _fill({key: array[slot] for key, array in slots.items()}, examples, rows, seed)))
        except (EOFError, OSError):
            raise
        except UserError as error:
            run.send(("mistake", str(error)))
        except Exception:
            run.send(("fault", traceback.format_exc()))


def _received(task: bytes) -> tuple[Any, ...]:
    try:
        return pickle.loads(task)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"Found a source that other processes cannot import ({error}): move its class into a module of its own, or set "
            "data.workers=0."
        ) from error


def _fill(batch: Arrays, examples: Examples, rows: list[Row], seed: int) -> list[tuple[int, int, str]]:
    """Write the arrays of these rows; return the unreadable rows."""
    unreadable = []
    for row, index, position in rows:
        try:
            for key, array in examples.read(index, seed, position).items():
                batch[key][row] = array
        except UnreadableImage as error:
            unreadable.append((row, index, str(error)))
    return unreadable


def _size(layout: dict[str, tuple[tuple[int, ...], str]]) -> int:
    return sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in layout.values())


def _anonymous_file(size: int) -> IO[bytes]:
    """Return an unnamed file, in memory if the system supports it."""
    in_memory = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("batches"), "r+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _arrays(file: int, layout: dict[str, tuple[tuple[int, ...], str]]) -> Arrays:
    """Return the arrays stored one after another in a file."""
    memory, start, arrays = mmap.mmap(file, _size(layout)), 0, {}
    for key, (shape, kind) in layout.items():
        arrays[key] = np.ndarray(shape, kind, memory, start)
        start += arrays[key].nbytes
    return arrays
