"""Time complete predictions: from bytes on the host to probabilities on the host."""

import statistics
import time
from typing import Any

import numpy as np

from vit_jax.inference import Predictor
from vit_jax.perf.turns import Side, in_turns, ratio
from vit_jax.tasks.task import Weights


class OurPrediction:
    """A predict function on one batch of random bytes; called with a number of times, it returns their seconds.

    latencies: the seconds of each prediction so far, except the first, which runs here and compiles.
    """

    def __init__(self, predict: Predictor, weights: Weights, batch_size: int, image_shape: tuple[int, int, int]):
        self._predict, self._weights = predict, weights
        self._batch = {"image": np.random.default_rng(0).integers(0, 256, (batch_size, *image_shape), np.uint8)}
        self.latencies: list[float] = []
        self.first_seconds = self(1)
        self.latencies.clear()

    def __call__(self, steps: int) -> float:
        whole = time.perf_counter()
        for _ in range(steps):
            begin = time.perf_counter()
            self._predict.outputs(self._weights, self._batch)
            self.latencies.append(time.perf_counter() - begin)
        return time.perf_counter() - whole


def measure_prediction(
    ours: OurPrediction, peer: Side | None, batch_size: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Return images per second, median and 95th percentile of the latency, and the speed relative to the peer."""
    sides: dict[str, Side] = {"ours": ours} | ({} if peer is None else {"peer": peer})
    found = in_turns(sides, steps, rounds)
    middle, most = np.percentile(ours.latencies, (50, 95)).tolist()
    row: dict[str, Any] = {
        "batch_size": batch_size,
        "images_per_second": batch_size / statistics.median(found["ours"]),
        "latency_p50_ms": 1e3 * middle,
        "latency_p95_ms": 1e3 * most,
        "first_seconds": ours.first_seconds,
    }
    if peer is not None:
        row["peer_images_per_second"] = batch_size / statistics.median(found["peer"])
        row["of_peer"] = ratio(found["ours"], found["peer"])
    return row
