"""One run at a time in a workdir, however the one before ended."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT, rows, start
from vit_jax.checkpoint import lock
from vit_jax.types import UserError

HOLD = "import sys, time; from pathlib import Path; from vit_jax.checkpoint.lock import locked\nwith locked(Path(sys.argv[1])): print('up', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate()


def refused(workdir):
    with (
        pytest.raises(UserError, match=r"in use by another run \(process \d+ on .*give another --workdir"),
        lock.locked(workdir),
    ):
        pass


def as_of_another_host(workdir):
    path = workdir / lock.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))


def test_a_locked_workdir_is_refused_until_the_lock_is_released(holder, tmp_path):
    refused(tmp_path)
    holder.send_signal(signal.SIGINT)
    holder.wait()
    with lock.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_run_on_the_same_machine_blocks_nobody(holder, tmp_path):
    holder.kill()  # not waited for: the process is a zombie
    time.sleep(0.2)
    begin = time.monotonic()
    with lock.locked(tmp_path):
        assert time.monotonic() - begin < 1


def test_another_machine_is_refused_while_the_lock_beats(holder, tmp_path, monkeypatch):
    as_of_another_host(tmp_path)
    ended = threading.Event()
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    thread = threading.Thread(target=lock._beat, args=(tmp_path / lock.NAME, ended))
    thread.start()
    refused(tmp_path)
    ended.set()
    thread.join()


def test_another_machine_continues_once_the_lock_no_longer_beats(holder, tmp_path, monkeypatch):
    as_of_another_host(tmp_path)
    holder.kill()
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.0)
    with lock.locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "[" * 100_000])
def test_a_damaged_lock_that_does_not_beat_is_replaced(content, tmp_path, monkeypatch):
    (tmp_path / lock.NAME).write_text(content)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.2)
    with lock.locked(tmp_path):
        pass


def test_a_copy_of_a_running_workdir_is_not_locked(holder, tmp_path):
    shutil.copytree(tmp_path, tmp_path / "copy")
    with lock.locked(tmp_path / "copy"):
        pass


def test_of_many_that_find_a_killed_run_one_continues(holder, tmp_path):
    holder.kill()
    holder.wait()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD.replace("60", "3"), str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(6)
    ]
    assert sum(process.communicate()[0].startswith("up") for process in processes) == 1


def pair(workdir, *second_flags):
    """Two runs of one workdir: the second is refused, and the first goes on; then it is killed, and another resumes at once."""
    flags = ("--config.steps=100000", "--config.evals.test.every=None", "--config.log.every=100")
    first = start(workdir, *flags)
    until_step(first)
    second = start(workdir, *flags, *second_flags)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 2, output
    assert "in use by another run" in output
    assert "Traceback" not in output
    assert first.poll() is None
    first.kill()
    third = start(workdir, *flags, *second_flags)
    until_step(third)
    third.send_signal(signal.SIGTERM)
    third.communicate(timeout=60)
    assert third.returncode == 0
    first.communicate()
    steps = [row["step"] for row in rows(workdir)]
    assert steps == sorted(set(steps))
    assert not (workdir / lock.NAME).exists()


def until_step(process):
    for line in process.stdout:
        assert "to see whether" not in line
        if line.startswith("step"):
            return
    raise AssertionError("it never made a step")


def test_the_second_run_of_a_workdir_is_refused_and_the_first_unharmed(tmp_path):
    pair(tmp_path / "run")


@pytest.mark.torture
@pytest.mark.parametrize("flag", ["data.threads=2", "log.tensorboard=False", "data.prefetch=1", "checkpoint.keep=3"])
def test_four_pairs(tmp_path, flag):
    pair(tmp_path / "run", f"--config.{flag}")
