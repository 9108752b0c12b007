"""Find the nearest vectors of an index: exactly with numpy, or approximately with a usearch graph in float16."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit_jax.checkpoint.workdir import write_text
from vit_jax.search.index import Index, Vectors, checksum
from vit_jax.types import UserError

GRAPH_FROM = 50_000  # vectors; fewer are searched exactly within milliseconds
BLOCK = 2**14  # vectors compared at once
MOST_PAIRS = 1_000_000  # of near-duplicates, which are kept in memory
# Graph parameters: edges per vector, and candidates while building and searching.
CONNECTIVITY, BUILT, SEARCHED = 32, 128, 192
Found = tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]


@dataclasses.dataclass(frozen=True)
class Hit:
    """A found image: its number, its cosine with the query, and, in an index of patches, its nearest patch."""

    image: int
    cosine: float
    patch: int | None


class Searcher:
    """Searches an index, using its graph if that is up to date."""

    def __init__(self, index: Index, exact: bool = False):
        self.index = index
        self.graph = None if exact else open_graph(index)

    def images(self, query: Vectors, k: int, selected: np.ndarray | None = None) -> list[Hit]:
        """Return the k images most similar to a vector [1, d], among the selected ones, nearest first."""
        per_image, count = self.index.about.per_image, k
        while True:
            cosines, rows = self.vectors(query, min(count, len(self.index)), selected)
            hits: dict[int, Hit] = {}
            for cosine, row in zip(cosines[0].tolist(), rows[0].tolist(), strict=True):
                image, patch = divmod(row, per_image)
                hits.setdefault(image, Hit(image, cosine, None if per_image == 1 else patch))
            # Several of the nearest patches may belong to one image.
            if len(hits) >= k or rows.shape[1] < count:
                return list(hits.values())[:k]
            count *= 8

    def vectors(self, queries: Vectors, k: int, selected: np.ndarray | None = None) -> Found:
        """Return the cosines and row numbers of the k nearest vectors of each query, nearest first."""
        if self.graph is None or selected is not None:
            return exact(self.index, queries, k, selected)
        rows = np.asarray(self.graph.search(queries, k).keys, np.int64).reshape(len(queries), -1)
        # The float16 graph decides which vectors are found, float32 their order.
        near = self.index.vectors(rows.reshape(-1)).reshape(*rows.shape, -1)
        cosines = np.einsum("qkd,qd->qk", near, queries)
        order = np.argsort(-cosines, axis=1, kind="stable")
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)


def exact(index: Index, queries: Vectors, k: int, selected: np.ndarray | None = None) -> Found:
    """Search every vector exactly, block by block, so that the vectors stay on disk."""
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    keep = None if selected is None else np.repeat(selected, index.about.per_image)
    for start, block in blocks(index):
        scores = queries @ block.T
        if keep is not None:
            scores[:, ~keep[start : start + len(block)]] = -np.inf
        few = min(k, len(block))
        top = np.argpartition(-scores, few - 1, axis=1)[:, :few]
        best = np.concatenate([best, np.take_along_axis(scores, top, 1)], axis=1)
        rows = np.concatenate([rows, start + top], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    count = int(np.isfinite(best).sum(axis=1).min()) if len(best) else 0
    return best[:, :count], rows[:, :count]


def blocks(index: Index) -> Iterator[tuple[int, Vectors]]:
    """Yield the vectors of an index in blocks, with the row number of the first."""
    first = 0
    for part in index.parts:
        for start in range(0, len(part), BLOCK):
            yield first + start, part[start : start + BLOCK]
        first += len(part)


def near_duplicates(index: Index, other: Index | None, least: float) -> Iterator[tuple[int, int, float]]:
    """Yield (image, image, cosine) of all pairs with at least this cosine, within an index or between two.

    Raises UserError if there are more than MOST_PAIRS.
    """
    searcher, found = Searcher(index if other is None else other), set[tuple[int, int]]()
    for start, block in blocks(index):
        for at in range(0, len(block), 256):
            cosines, rows = _similar(searcher, np.asarray(block[at : at + 256]), least)
            for i, place in np.argwhere(cosines >= least).tolist():
                one, row = start + at + i, int(rows[i, place])
                # A graph may find a pair from one of its images only.
                pair = (one, row) if other is not None else (min(one, row), max(one, row))
                if (other is not None or one != row) and pair not in found:
                    found.add(pair)
                    yield *pair, float(cosines[i, place])
            if len(found) > MOST_PAIRS:
                raise _too_many(least)


def _similar(searcher: Searcher, queries: Vectors, least: float) -> Found:
    """Return at least all vectors that have at least this cosine with a query."""
    k = 16
    while True:
        cosines, rows = searcher.vectors(queries, min(k, len(searcher.index)))
        if k >= len(searcher.index) or not (cosines[:, -1] >= least).any():
            return cosines, rows
        if k > MOST_PAIRS // len(queries):
            raise _too_many(least)
        k *= 4


def _too_many(least: float) -> UserError:
    return UserError(
        f"More than {MOST_PAIRS:,} pairs have a cosine of at least {least}, as the features of this model are close to each "
        "other: raise --least, or index another model's."
    )


# The graph.


def write_graph(index: Index, threads: int = 0) -> float:
    """Build the graph of an index, or add the new vectors to it; return the seconds taken."""
    import time

    began, state = time.monotonic(), index.state
    graph, have = new_graph(index), 0
    old = _record(index)
    if old and old["state"] == state[: len(old["state"])] and _is_whole(index, old):
        have = sum(len(part) for part in index.parts[: len(old["state"])])
        graph.load(str(_path(index)))
    for start, block in blocks(index):
        if start >= have:
            graph.add(np.arange(start, start + len(block)), np.asarray(block), threads=threads)
    temporary = _path(index).with_suffix(".tmp")
    graph.save(str(temporary))
    os.replace(temporary, _path(index))
    record = {"state": state, "vectors": len(index), "crc32": checksum(_path(index))}
    write_text(_path(index).with_suffix(".json"), json.dumps(record))
    return time.monotonic() - began


def new_graph(index: Index, dtype: str = "f16") -> Any:
    """Return an empty graph for the vectors of an index."""
    try:
        from usearch.index import Index as Graph
    except ImportError:
        raise UserError(
            'A graph for approximate search needs usearch; install it with `pip install -e ".[search]"`, or search with --exact.'
        ) from None
    options: dict[str, Any] = {"connectivity": CONNECTIVITY, "expansion_add": BUILT, "expansion_search": SEARCHED}
    return Graph(ndim=index.about.length, metric="ip", dtype=dtype, **options)


def open_graph(index: Index) -> Any:
    """Memory-map the graph of an index; None if there is none or it is out of date."""
    record = _record(index)
    if record is None or record["state"] != index.state or not _is_whole(index, record):
        return None
    graph = new_graph(index)
    graph.view(str(_path(index)))
    return graph if len(graph) == len(index) else None


def _is_whole(index: Index, record: dict[str, Any]) -> bool:
    """Return whether the graph's file is intact, as usearch reads any bytes."""
    return _path(index).exists() and checksum(_path(index)) == record["crc32"]


def _record(index: Index) -> dict[str, Any] | None:
    try:
        found = json.loads(_path(index).with_suffix(".json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("state"), list) and "crc32" in found else None


def _path(index: Index) -> Path:
    return index.folder / "graph.usearch"
