import logging
import subprocess
import sys
import threading

import numpy as np
import pytest

from vit_jax.data.examples import Array
from vit_jax.data.pipeline import DataSpec, EvalData, TrainData
from vit_jax.data.source import Image, Label, Source, UnreadableImage
from vit_jax.data.sources.fake import Fake
from vit_jax.types import UserError


class Numbered(Source):
    """Image i has the value i everywhere and the label i % 5; the images in `bad` cannot be read."""

    def __init__(self, size, bad=(), shape=(4, 4, 1)):
        self.size, self.bad, self.shape = size, set(bad), shape
        self.fields = {"image": Image(), "label": Label(tuple("abcde"))}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise UnreadableImage("damaged")
        return {"image": np.full(self.shape, index, np.uint8), "label": index % 5}

    def name(self, index):
        return f"file{index}"


def order(data, start, stop):
    return [int(value) for _, batch in data.from_step(start, stop) for value in batch["image"][:, 0, 0, 0]]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for (step, batch), (other_step, other) in zip(batches, others, strict=True):
        assert step == other_step
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_spec_is_that_of_the_preprocessed_images():
    data = TrainData(Numbered(20), "resize((6, 8))", 4, seed=0)
    layout = {"image": Array((6, 8, 1), "uint8"), "label": Array((), "int32")}
    assert data.spec == DataSpec(layout, 20, Numbered(20).fields)
    assert data.spec.class_names == tuple("abcde")


def test_batches_have_the_promised_arrays():
    ((step, batch),) = TrainData(Numbered(20), "", 6, seed=0).from_step(3, 4)
    assert step == 3
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((6, 4, 4, 1), np.uint8),
        "label": ((6,), np.int32),
    }
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 5)


def test_each_epoch_visits_each_example_once():
    values = order(TrainData(Numbered(21), "", 6, seed=0), 0, 21)  # 126 positions: six epochs that batches straddle
    epochs = [values[i : i + 21] for i in range(0, 126, 21)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_order_depends_on_the_seed_alone():
    first, again, other = (order(TrainData(Numbered(30), "", 10, seed=seed), 0, 3) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_order_does_not_depend_on_the_batch_size():
    small, large = (order(TrainData(Numbered(30), "", size, seed=1), 0, 60 // size) for size in (4, 20))
    assert small == large


@pytest.mark.parametrize("step", [1, 7, 11])
def test_from_step_is_the_tail_of_the_whole(step):
    data = TrainData(Fake(20, 8, num_classes=3), "inception_crop(6)|flip", 4, seed=5)
    assert_same(list(data.from_step(0, 12))[step:], list(data.from_step(step, 12)))


def test_from_step_at_or_after_the_end_is_empty():
    data = TrainData(Numbered(20), "", 4, seed=0)
    assert list(data.from_step(5, 5)) == list(data.from_step(6, 5)) == []


def test_late_step_is_reached_at_once():
    data = TrainData(Numbered(20), "", 4, seed=0)
    assert [step for step, _ in data.from_step(10**9, 10**9 + 2)] == [10**9, 10**9 + 1]


def block(index, count, size=8):
    """The rows of one of `count` processes."""
    return range(index * size // count, (index + 1) * size // count)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_make_the_batches_of_one(count):
    def batches(index, count):
        source = Numbered(30, bad=[3, 4], shape=(6, 6, 3))
        data = TrainData(source, "pad_crop(6, 2)|flip", 8, 1, rows=block(index, count), max_unreadable=0.1)
        return list(data.from_step(2, 9))

    parts = [batches(i, count) for i in range(count)]
    joined = [
        (
            step_batches[0][0],
            {key: np.concatenate([batch[key] for _, batch in step_batches]) for key in ("image", "label")},
        )
        for step_batches in zip(*parts, strict=True)
    ]
    assert_same(joined, batches(0, 1))


@pytest.mark.parametrize(("threads", "cache_mb"), [(1, 0), (4, 0), (4, 2048)])
def test_threads_and_cache_do_not_change_the_batches(threads, cache_mb):
    def batches(**kwargs):
        return list(TrainData(Fake(30, 8), "pad_crop(8, 2)|flip", 8, seed=1, **kwargs).from_step(0, 10))

    assert_same(batches(threads=threads, cache_mb=cache_mb), batches())


def test_augmentation_differs_between_epochs_and_between_examples():
    source = Fake(1, 32, num_classes=2)
    images = [image for _, b in TrainData(source, "inception_crop(8)", 2, 0).from_step(0, 4) for image in b["image"]]
    assert len({image.tobytes() for image in images}) == 8


def test_augmentation_depends_on_the_seed():
    first, other = (next(TrainData(Fake(1, 32), "inception_crop(8)", 1, s).from_step(0, 1))[1] for s in (0, 1))
    assert (first["image"] != other["image"]).any()


def test_unreadable_is_replaced_by_the_next_readable_of_the_epoch():
    size, bad = 20, {2, 3, 11}
    clean = order(TrainData(Numbered(size), "", 5, seed=4), 0, 12)
    got = order(TrainData(Numbered(size, bad), "", 5, seed=4, max_unreadable=0.2), 0, 12)
    expected = []
    for position in range(60):
        epoch, within = clean[position // size * size :][:size], position % size
        expected.append(next(v for v in epoch[within:] + epoch[:within] if v not in bad))
    assert got == expected


def test_unreadable_are_recorded_and_logged_once(caplog):
    data = TrainData(Numbered(20, [2, 3]), "", 5, seed=4, threads=4, max_unreadable=0.1)
    with caplog.at_level(logging.WARNING):
        order(data, 0, 12)
    assert data.unreadable == {"file2": "damaged", "file3": "damaged"}
    assert sorted(r.getMessage() for r in caplog.records if "damaged" in r.getMessage()) == [
        "Unreadable image file2: damaged",
        "Unreadable image file3: damaged",
    ]


def test_more_than_the_share_stops_with_count_share_and_files():
    data = TrainData(Numbered(100, [11, 21, 31]), "", 10, seed=0, max_unreadable=0.02)
    with pytest.raises(
        UserError, match=r"^Found 3 unreadable images among 100, expected at most 2.00%.*file\d1.*damaged"
    ):
        order(data, 0, 20)


def test_share_itself_is_tolerated():
    data = TrainData(Numbered(100, [10, 20]), "", 10, seed=0, max_unreadable=0.02)
    assert len(order(data, 0, 20)) == 200


def test_one_unreadable_image_is_always_tolerated():
    assert len(order(TrainData(Numbered(5, [1]), "", 5, seed=0, max_unreadable=0.0), 0, 2)) == 10


@pytest.mark.parametrize("kind", [lambda s: TrainData(s, "", 2, 0), lambda s: EvalData(s, "", 2)])
@pytest.mark.parametrize("size", [1, 5])
def test_no_readable_image_at_all_is_an_error_before_training(kind, size):
    with pytest.raises(UserError, match="unreadable images among"):
        kind(Numbered(size, range(size)))


class Growing(Numbered):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"image": np.zeros((4 + index, 4, 1), np.uint8)}


def test_differing_shapes_are_found_before_training_and_name_the_file():
    with pytest.raises(UserError, match=r"'image' of file1 .*expected \(4, 4, 1\).*crop"):
        TrainData(Growing(10), "", 5, seed=0)


class LateGrowing(Numbered):
    """One image of another shape, which probing does not read."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"image": np.zeros((4 + (index == 13), 4, 1), np.uint8)}


def test_a_differing_shape_that_probing_missed_stops_the_run():
    data = TrainData(LateGrowing(100), "", 5, seed=0)
    with pytest.raises(UserError, match=r"'image' of file13 .*expected \(4, 4, 1\).*crop"):
        order(data, 0, 20)


def test_seed_out_of_range_is_an_error():
    with pytest.raises(UserError, match="seed=-1"):
        TrainData(Numbered(20), "", 10, seed=-1)


def test_batches_are_fresh_arrays():
    data = TrainData(Numbered(20), "", 10, seed=0)
    batches = list(data.from_step(0, 2))
    before = batches[1][1]["image"].copy()
    batches[0][1]["image"][:] = 255
    np.testing.assert_array_equal(batches[1][1]["image"], before)
    assert_same(list(data.from_step(1, 2)), [(1, {"image": before, "label": batches[1][1]["label"]})])


def test_stopping_early_leaves_no_threads():
    before = set(threading.enumerate())
    batches = TrainData(Numbered(20), "", 10, seed=0).from_step(0, 1000)
    next(batches)
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_interpreter_exits_with_an_iterator_half_used():
    code = (
        "from vit_jax.data.sources.fake import Fake; from vit_jax.data.pipeline import TrainData; "
        "batches = TrainData(Fake(20, 8), '', 10, seed=0).from_step(0, 10**6); next(batches)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 16])
def test_evaluation_covers_each_example_exactly_once(size, count):
    processes = [list(EvalData(Numbered(size), "", 8, rows=block(i, count))) for i in range(count)]
    assert {len(batches) for batches in processes} == {-(-size // 8)}
    seen = []
    for batch in (batch for batches in processes for batch in batches):
        assert batch["image"].shape == (8 // count, 4, 4, 1)
        assert (batch["label"].dtype, batch["mask"].dtype, batch["index"].dtype) == (np.int32, bool, np.int32)
        mask = batch["mask"]
        assert not batch["image"][~mask].any()
        assert not batch["index"][~mask].any()
        np.testing.assert_array_equal(batch["image"][mask][:, 0, 0, 0], batch["index"][mask])
        np.testing.assert_array_equal(batch["label"][mask], batch["index"][mask] % 5)
        seen += batch["index"][mask].tolist()
    assert sorted(seen) == list(range(size))


def test_evaluation_can_be_repeated():
    data = EvalData(Numbered(10), "", 4)
    assert [b["index"].tolist() for b in data] == [b["index"].tolist() for b in data]


def test_evaluation_masks_and_reports_unreadable_images():
    data = EvalData(Numbered(10, [6]), "", 4)
    masked = [i for batch in data for i, ok in zip(batch["index"], batch["mask"], strict=True) if not ok and i]
    assert masked == [6]
    assert data.unreadable == {"file6": "damaged"}


def test_evaluation_stops_above_the_share():
    with pytest.raises(UserError, match="Found 2 unreadable images among 10"):
        list(EvalData(Numbered(10, [4, 6]), "", 4))
