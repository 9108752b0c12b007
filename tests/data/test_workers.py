import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_pipeline import LateGrowing, Numbered, assert_same

from vit_jax.data.pipeline import TrainData
from vit_jax.data.source import Image as ImageField
from vit_jax.data.source import Numbers, UnreadableImage
from vit_jax.data.sources.fake import Fake
from vit_jax.data.sources.folder import Folder
from vit_jax.types import UserError


def children():
    """The worker processes of this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
            if int(fields[1]) == os.getpid() and fields[0] != "Z" and b"data.workers" in command:
                found.append(int(stat.parent.name))
    return found


def gone(pids):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not any(
            Path(f"/proc/{pid}").exists() and "\tZ" not in Path(f"/proc/{pid}/status").read_text() for pid in pids
        ):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of JPEGs of many sizes, some turned, one a PNG, one cut off."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(24):
        folder = root / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (5, 7, 3), np.uint8).repeat(8 + number, 0).repeat(9, 1)
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        if number == 7:
            Image.fromarray(pixels).save(folder / "7.png")
        else:
            Image.fromarray(pixels).save(folder / f"{number}.jpg", exif=exif if number % 3 else Image.Exif())
    whole = root / "class0" / "10.jpg"
    whole.write_bytes(whole.read_bytes()[:-400])
    return str(root)


def batches(source, preprocess="inception_crop(16)|flip", start=0, stop=8, batch_size=6, **kwargs):
    data = TrainData(source, preprocess, batch_size, seed=3, **kwargs)
    return list(data.from_step(start, stop)), data.unreadable


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_batches_and_the_unreadable_images_of_threads(photos, workers):
    (expected, unreadable), (got, met) = (batches(Folder(photos, "all"), workers=count) for count in (0, workers))
    assert_same(got, expected)
    assert met == unreadable
    assert len(met) == 1


@pytest.mark.parametrize("kwargs", [{"cache_mb": 0}, {"threads": 1, "cache_mb": 0}, {"prefetch": 0, "workers": 2}])
def test_cached_and_decoded_in_part_are_the_same_pixels(photos, kwargs):
    (expected, _), (got, _) = batches(Folder(photos, "all")), batches(Folder(photos, "all"), **kwargs)
    assert_same(got, expected)


def test_an_image_damaged_below_its_crop_is_unreadable_whatever_was_read_before(photos):
    whole, met = batches(Folder(photos, "all"), cache_mb=0)
    for start in (2, 5):
        assert_same(batches(Folder(photos, "all"), start=start, cache_mb=0)[0], whole[start:])
    assert [Path(name).name for name in met] == ["10.jpg"]


class Measured(Numbered):
    def __init__(self, size):
        super().__init__(size)
        self.fields = {"image": ImageField(), "label": Numbers(tuple("abcde"))}

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": np.arange(5, dtype=np.float32) + index}


def test_numbers_as_labels_come_back_too():
    ((_, batch),), _ = batches(Measured(20), "", stop=1, workers=2)
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0] + np.arange(5, dtype=np.float32))


def test_unreadable_images_are_counted_once_and_replaced_in_workers(caplog):
    (expected, unreadable), _ = batches(Numbered(20, [2, 3]), "", max_unreadable=0.1), caplog.clear()
    with caplog.at_level(logging.WARNING):
        got, met = batches(Numbered(20, [2, 3]), "", max_unreadable=0.1, workers=2)
    assert_same(got, expected)
    assert met == unreadable == {"file2": "damaged", "file3": "damaged"}
    assert len([r for r in caplog.records if "Unreadable" in r.getMessage()]) == 2


def test_too_many_unreadable_images_in_workers_stop_the_run():
    with pytest.raises(UserError, match=r"Found 3 unreadable images among 100, expected at most 2\.00%"):
        batches(Numbered(100, [11, 21, 31]), "", stop=17, max_unreadable=0.02, workers=2)
    assert gone(children())


def test_a_mistake_of_the_users_in_a_worker_is_one_message():
    data = TrainData(LateGrowing(100), "", 5, seed=0, workers=2)
    with pytest.raises(UserError, match=r"'image' of file13 .*expected \(4, 4, 1\).*crop"):
        list(data.from_step(0, 20))
    assert gone(children())


class Late(Numbered):
    """Readable at first, in the process that makes it; broken in others."""

    made_in = 0

    def __init__(self, size, how):
        super().__init__(size)
        self.made_in, self.how = os.getpid(), how

    def __getitem__(self, index):
        if os.getpid() == self.made_in:
            return super().__getitem__(index)
        if self.how == "fault":
            raise ZeroDivisionError("a fault of the source")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "mistake":
            raise UserError("a mistake in the source")
        if self.how == "slow":
            time.sleep(3600)
        raise UnreadableImage("unreadable there")


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("fault", RuntimeError, r"(?s)in a data worker.*ZeroDivisionError: a fault of the source"),
        ("mistake", UserError, "^a mistake in the source$"),
        ("killed", UserError, r"data worker \d of 2 was killed by SIGKILL.*lower data.workers"),
    ],
)
def test_what_ends_a_worker_reaches_the_user(how, error, message):
    with pytest.raises(error, match=message):
        batches(Late(20, how), "", workers=2)
    assert gone(children())


def test_what_a_worker_alone_cannot_read_is_made_here():
    assert_same(batches(Late(20, "unreadable"), "", max_unreadable=1.0)[0], batches(Numbered(20), "")[0])
    data = TrainData(Late(20, "unreadable"), "", 6, seed=3, max_unreadable=1.0, workers=2)
    with pytest.raises(UserError, match="Found 20 unreadable"):
        list(data.from_step(0, 8))


def test_stopping_early_ends_the_workers_and_frees_the_memory():
    stream = TrainData(Fake(20, 8), "", 10, seed=0, workers=2).from_step(0, 1000)
    next(stream)
    pids = children()
    assert len(pids) == 2
    assert "memfd:batches" in Path("/proc/self/maps").read_text()
    stream.close()
    assert gone(pids)
    assert "memfd:batches" not in Path("/proc/self/maps").read_text()


def test_a_worker_that_hangs_is_killed_at_the_end(monkeypatch):
    monkeypatch.setattr("vit_jax.data.workers.ENDING_SECONDS", 0.2)
    data = TrainData(Late(20, "slow"), "", 10, seed=0, workers=1)
    stream = data._in_workers(0, 5)
    monkeypatch.setattr("vit_jax.data.workers.Workers.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert gone(children())


def test_workers_import_no_jax_and_ignore_the_signals_of_the_group(photos):
    stream = TrainData(Folder(photos, "all"), "inception_crop(16)", 6, seed=3, workers=1).from_step(0, 10**6)
    next(stream)
    (pid,) = children()
    assert "jaxlib" not in Path(f"/proc/{pid}/maps").read_text()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    for _ in range(10):
        next(stream)
    stream.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_a_run_that_is_ended(number, photos):
    code = (
        "import sys; from vit_jax.data.sources.folder import Folder; from vit_jax.data.pipeline import TrainData\n"
        "for step, _ in TrainData(Folder(sys.argv[1], 'all'), 'inception_crop(16)', 6, seed=0, workers=2).from_step(0, 10**9):\n"
        "    if step == 0: print('begun', flush=True)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, photos], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert run.stdout.readline() == b"begun\n"
        pids = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        assert len(pids) == 2
        run.send_signal(number)
        assert run.wait(20) != 0
        assert gone(pids)
    finally:
        run.kill()
        run.stdout.close()
        run.wait()


def test_a_source_that_cannot_be_sent_is_an_error():
    source = Numbered(20)
    source.file = io.StringIO()
    source.size_of = lambda: 20
    with pytest.raises(UserError, match=r"type Numbered that cannot be sent.*data.workers=0"):
        batches(source, "", workers=1)


def test_a_negative_number_of_workers_is_an_error():
    with pytest.raises(UserError, match="workers=-1"):
        TrainData(Numbered(20), "", 10, seed=0, workers=-1)
