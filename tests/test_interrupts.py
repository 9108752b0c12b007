"""Ctrl-C ends a run within 10 s, with exit code 130, a saved state where one is due, and never a traceback."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, start
from vit_jax.checkpoint.saver import steps_in

LONG = ("--config.steps=100000", "--config.log.every=1000", "--config.evals.test.every=None")
# Compiles for longer than Ctrl-C may take.
DEEP = ("--config.model={'type': 'vit.ViT', 'width': 32, 'depth': 24, 'mlp_dim': 64, 'num_heads': 2, 'patch_size': 4}",)


def interrupt(process: subprocess.Popen, count: int = 1) -> str:
    """Send Ctrl-C; return what was printed, once the process has ended as it should."""
    begin = time.monotonic()
    for _ in range(count):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    try:
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    took = time.monotonic() - begin
    assert process.returncode == 130, output
    assert "Traceback" not in output, output
    assert "Exception ignored" not in output, output
    assert took < (10 if count == 1 else 3), output
    return output


def until_written(path) -> None:
    """Wait for config.json, which is written before the first compile."""
    begin = time.monotonic()
    while not (path / "config.json").exists():
        assert time.monotonic() < begin + 200
        time.sleep(0.1)


def until(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"it never printed {text}")


def test_once_during_training_saves_the_last_step(tmp_path):
    process = start(tmp_path / "run", *LONG)
    until(process, "compiled")
    output = interrupt(process)
    (saved,) = steps_in(tmp_path / "run" / "checkpoints")
    assert f"step {saved} is saved" in output


def test_once_during_a_long_compile_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("XLA_FLAGS", "")
    process = start(tmp_path / "run", *LONG, *DEEP)
    until_written(tmp_path / "run")
    time.sleep(2)
    assert "stopped at once" in interrupt(process)


def test_twice_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    process = start(tmp_path / "run", *LONG, *DEEP)
    until_written(tmp_path / "run")
    time.sleep(1)
    interrupt(process, count=2)


def test_a_command_that_waits_ends_too(tmp_path):
    code = "import time; from vit_jax.cli.command import run_cli; import sys; print('up', flush=True); sys.exit(run_cli(lambda _: time.sleep(60), []))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(process, "up")
    time.sleep(0.5)
    interrupt(process)


def test_swallowed_interrupts_are_raised_again(tmp_path):
    code = """
import sys, time
from vit_jax.cli.command import run_cli
class Swallows:
    def __del__(self):
        print("up", flush=True)
        time.sleep(3)
def command(_):
    Swallows()
    while True:
        time.sleep(0.01)
sys.exit(run_cli(command, []))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(process, "up")
    interrupt(process)


@pytest.mark.torture
def test_24_interrupts_at_random_moments(tmp_path, monkeypatch):
    """Half of them during a compile that nothing is cached for; the other runs are interrupted anywhere in their life."""
    moments, lives = random.Random(0), []
    for number in range(24):
        uncached = number % 2 == 0
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "" if uncached else str(tmp_path / "cache"))
        process = start(tmp_path / f"run{number}", *LONG, *(DEEP if uncached else ()))
        if uncached:
            until_written(tmp_path / f"run{number}")
            time.sleep(moments.uniform(0, 6))
        else:
            time.sleep(moments.uniform(0.5, 15))
        begin = time.monotonic()
        interrupt(process)
        lives.append(time.monotonic() - begin)
    print(f"24 of 24 ended with 130; the slowest took {max(lives):.1f} s")
