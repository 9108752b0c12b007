import numpy as np

from vit_jax.data.pipeline import TrainData
from vit_jax.data.sources.fake import Fake
from vit_jax.perf.input_speed import measure, rate


def endless():
    while True:
        yield {"image": np.zeros((4, 2, 2, 3), np.uint8)}


def test_a_rate_counts_the_images_of_the_batches_alone():
    taken = []

    def stream():
        for batch in endless():
            taken.append(len(batch["image"]))
            yield batch

    found = rate(stream, 5)
    assert len(taken) == 6
    assert found.per_second > 0
    assert found.per_cpu_second > 0


def test_every_count_of_threads_and_workers_and_the_peer_have_a_row():
    opened = []

    def open_data(threads, workers):
        opened.append((threads, workers))
        return TrainData(Fake(20, 8), "resize(4)", 4, seed=0, threads=threads, workers=workers)

    rows = measure(open_data, counts=(1, 2), batches=2, rounds=2, peer=endless)
    assert opened == [(1, 0), (2, 0), (1, 1), (1, 2)]
    kinds = [(row["kind"], row["count"]) for row in rows]
    assert kinds == [("threads", 1), ("threads", 2), ("workers", 1), ("workers", 2), ("peer", 1)]
    assert all(row["images_per_second"] > 0 and row["scaling"] > 0 for row in rows)
    assert [row["images_per_cpu_second"] is None for row in rows] == [False, False, True, True, False]
    assert rows[0]["scaling"] == rows[2]["scaling"] == rows[4]["of_peer"] == 1
    assert "of_peer" not in measure(open_data, counts=(1,), batches=1, rounds=1)[0]
