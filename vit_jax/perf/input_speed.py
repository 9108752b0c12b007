"""Measure input speed: images per second, in total and per second of processor time."""

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.pipeline import TrainData

# Returns an endless iterator of batches, each a mapping of arrays, which is closed after use if it has close().
Stream = Callable[[], Iterator[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images per second, and per second of this process's processor time without its children."""

    per_second: float
    per_cpu_second: float


def rate(stream: Stream, batches: int) -> Rate:
    """Measure the rate over a number of batches, after a first one that waits for threads or processes to start."""
    iterator = stream()
    try:
        next(iterator)
        begin, cpu = time.perf_counter(), _cpu_seconds()
        images = sum(len(next(iter(next(iterator).values()))) for _ in range(batches))
        return Rate(images / (time.perf_counter() - begin), images / max(_cpu_seconds() - cpu, 1e-9))
    finally:
        getattr(iterator, "close", lambda: None)()


def measure(
    open_data: Callable[[int, int], TrainData],
    counts: Sequence[int] = (1, 2),
    batches: int = 20,
    rounds: int = 3,
    peer: Stream | None = None,
) -> list[dict[str, Any]]:
    """Return medians over the rounds for each number of threads and of worker processes, and for the peer.

    open_data(threads, workers) opens the data. Each round times all of them in turn, so that other load affects them
    alike. Each row has kind, count, images_per_second and images_per_cpu_second (None for workers, which use other
    processes' time), scaling (relative to the first count of its kind) and, with a peer, of_peer: medians of the ratios
    per round.
    """
    streams: dict[tuple[str, int], Stream] = {}
    for count in counts:
        streams["threads", count] = _endless(open_data(count, 0))
    for count in counts:
        streams["workers", count] = _endless(open_data(counts[0], count))
    if peer is not None:
        streams["peer", 1] = peer
    found = [{key: rate(stream, batches) for key, stream in streams.items()} for _ in range(rounds)]
    rows = []
    for kind, count in streams:
        row: dict[str, Any] = {"kind": kind, "count": count}
        row["images_per_second"] = statistics.median(turn[kind, count].per_second for turn in found)
        on_cpu = statistics.median(turn[kind, count].per_cpu_second for turn in found)
        row["images_per_cpu_second"] = None if kind == "workers" else on_cpu
        first = next(c for k, c in streams if k == kind)
        row["scaling"] = _ratio(found, (kind, count), (kind, first))
        if peer is not None:
            row["of_peer"] = _ratio(found, (kind, count), ("peer", 1))
        rows.append(row)
    return rows


def _ratio(found: list[dict[tuple[str, int], Rate]], of: tuple[str, int], to: tuple[str, int]) -> float:
    return float(np.median([turn[of].per_second / turn[to].per_second for turn in found]))


def _endless(data: TrainData) -> Stream:
    def stream() -> Iterator[Mapping[str, Any]]:
        for _, batch in data.from_step(0, 2**31):
            yield batch

    return stream


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
