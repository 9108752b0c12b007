"""A disk that fails in mid-run: one message with the place, what is saved and how to go on; then the run resumes."""

import errno
import gc
import json
import os
import shutil
import subprocess
import time

import pytest

from tests.conftest import checkpoint, crossed, pictures, rows, tiny_config
from vit_jax.checkpoint import disk, saver
from vit_jax.runs.sweeps.progress import RunProgress
from vit_jax.train.fit import fit
from vit_jax.train.metrics import Recorder, read_rows
from vit_jax.types import UserError


def at_step(monkeypatch, workdir, target, name, step, action):
    """Run an action when a method is called at a step, before the method itself, and once step 4 is saved."""
    real = getattr(target, name)

    def method(self, at, *rest):
        if at == step:
            begin = time.monotonic()
            while 4 not in saver.steps_in(workdir / "checkpoints"):  # it is written in the background
                assert time.monotonic() < begin + 60
                time.sleep(0.05)
            action()
        return real(self, at, *rest)

    monkeypatch.setattr(target, name, method)


METHODS = {"metrics": (Recorder, "add"), "checkpoint": (saver.Saver, "save")}


@pytest.mark.parametrize(("code", "method"), crossed([errno.EDQUOT, errno.EROFS], [*METHODS]))
def test_a_failing_disk_is_one_message_and_the_run_resumes(code, method, tmp_path, monkeypatch, capsys):
    def fail():
        raise OSError(code, os.strerror(code), str(tmp_path / "run" / "file"))

    with monkeypatch.context() as patch:
        at_step(patch, tmp_path / "run", *METHODS[method], 8, fail)
        with pytest.raises(
            UserError, match=rf"run cannot be written: {os.strerror(code)}; step 4 is saved there. To go on"
        ):
            fit(tiny_config(), tmp_path / "run")
    assert fit(tiny_config(), tmp_path / "run")["step"] == 12
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 13))


@pytest.mark.parametrize("kind", ["removed", "renamed"])
def test_a_workdir_that_vanishes_is_one_message(kind, tmp_path, monkeypatch):
    run, aside = tmp_path / "run", tmp_path / "aside"
    action = (lambda: shutil.rmtree(run)) if kind == "removed" else (lambda: run.rename(aside))
    with monkeypatch.context() as patch:
        at_step(patch, run, Recorder, "took", 7, action)
        with pytest.raises(UserError, match="run cannot be written: No such file or directory"):
            fit(tiny_config(), run)
    assert not run.exists()
    if kind == "renamed":
        aside.rename(run)
        assert fit(tiny_config(), run)["step"] == 12


def test_errors_of_other_places_are_not_blamed_on_the_workdir(tmp_path):
    with pytest.raises(FileNotFoundError), disk.explained(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/image.png")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the file of events cannot be closed
def test_a_full_disk_is_one_message_and_the_run_resumes_once_there_is_room(small_disk, tmp_path, monkeypatch, capfd):
    ballast = small_disk / "ballast"

    def fill():
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1024))
            except OSError:
                pass

    with monkeypatch.context() as patch:
        at_step(patch, small_disk / "run", Recorder, "took", 6, fill)
        with pytest.raises(UserError, match="run cannot be written: No space left on device; step 4 is saved there"):
            fit(tiny_config(), small_disk / "run")
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    gc.collect()  # tries once more to write the events
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert fit(tiny_config(), small_disk / "run")["step"] == 12
    assert checkpoint(small_disk / "run")


ROWS = [{"step": step, "loss": 1.0 / step, "seconds": float(step)} for step in (1, 2, 3)]
DAMAGE = {
    "empty": b"",
    "zeros": bytes(4096),
    "half a row": b'{"step": 4, "lo',
    "deep": b"[" * 100_000,
    "list": b"[1, 2]",
    "step of another type": b'{"step": "4"}\n{"step": true}\n{"step": null}\n{"step": 4.5}\n{"step": Infinity}',
    "huge step": b'{"step": 1' + b"0" * 400 + b"}",
    "digits": b'{"step": 1' + b"0" * 5000 + b"}",
    "negative step": b'{"step": -3}',
    "values of other types": b'{"step": 4, "loss": "x", "test/accuracy": [1], "lr": null, "images_per_second": {}}',
    "huge value": b'{"step": 4, "loss": 1' + b"0" * 400 + b"}",
    "not a number": b'{"step": 4, "loss": NaN, "seconds": -Infinity}',
    "bytes": b"\xff\xfe\x00\x80{}",
    "twice": json.dumps(ROWS[0]).encode(),
    "separators": '{"step": 4, "loss": 0.1}\u2028{"step"'.encode(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_lines_of_metrics_are_left_out(kind, tmp_path):
    lines = [json.dumps(row).encode() for row in ROWS]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], DAMAGE[kind], *lines[1:]]) + b"\n")
    found = read_rows(tmp_path / "metrics.jsonl")
    assert [row for row in found if row["step"] < 4] == ROWS
    assert all(type(value) in (int, float) for row in found for value in row.values())
    progress = RunProgress(tmp_path, "loss", "min")
    progress.refresh()
    assert progress.step == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pictures():
        fit(tiny_config(), workdir)
    return workdir


def test_any_damage_of_metrics_stops_neither_a_finished_run_nor_a_report(finished, tmp_path, draws):
    from vit_jax.__main__ import main as vit

    path = finished / "metrics.jsonl"
    good = path.read_bytes()
    for content in (b"\n".join(DAMAGE.values()), good[:-20], good.replace(b"0", b"\x00")):
        path.write_bytes(content)
        shutil.rmtree(finished / "report")
        fit(tiny_config(), finished)
        path.write_bytes(good + content)
        assert vit(["report", str(finished), f"--out={tmp_path / 'page.html'}"]) == 0
    path.write_bytes(good)
