"""Processes of a run end together: in time, with a message, and without a C++ stack."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_FLAGS, environment
from vit_jax.distributed import OWN

pytestmark = pytest.mark.xdist_group("multiprocess")
LONG = ("--config.steps=100000", "--config.evals.test.every=None", "--config.checkpoint.every=5")


def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def process(workdir, number, index, *flags):
    command = [sys.executable, "-u", "-m", "vit_jax.main", *TINY_FLAGS, *LONG, f"--workdir={workdir}", *flags]
    variables = dict(zip(OWN, (f"localhost:{number}", "2", str(index)), strict=True))
    with open(f"{workdir}.{index}.log", "w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(1) | variables, stdout=log, stderr=log)


def until_saved(workdir):
    begin = time.monotonic()
    while not any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*")):
        assert time.monotonic() < begin + 120
        time.sleep(0.2)


def ended(workdir, processes, seconds):
    """Exit codes and outputs, once all have ended within this time."""
    begin = time.monotonic()
    try:
        for one in processes:
            one.wait(max(1.0, begin + seconds - time.monotonic()))
    finally:
        for one in processes:
            one.kill()
    outputs = [Path(f"{workdir}.{index}.log").read_text() for index in range(2)]
    for output in outputs:
        for text in ("Traceback", "stack trace", "Terminating process", "terminate called"):
            assert text not in output, output
    return [one.returncode for one in processes], outputs


def scene(kind, tmp_path):
    workdir, number, who = tmp_path / "run", port(), int(kind[-1])
    odd = {
        "config": ("--config.optim.lr=0.5",),
        "refusal": ("--config.optim.rule.type=nothing",),
        "flag": ("--nothing",),
    }
    flags = [(), ()]
    flags[who] = odd.get(kind[:-1], ())
    if kind.startswith("late"):
        flags = [("--config.steps=5",)] * 2
    processes = [None, None]
    processes[1 - who] = process(workdir, number, 1 - who, *flags[1 - who])
    if kind.startswith("late"):
        time.sleep(15)
    processes[who] = process(workdir, number, who, *flags[who])
    if kind[:-1] in ("kill", "interrupt"):
        until_saved(workdir)
        processes[who].send_signal(signal.SIGKILL if kind.startswith("kill") else signal.SIGINT)
        codes, outputs = ended(workdir, processes, 30)
    else:
        codes, outputs = ended(workdir, processes, 120)
    other = 1 - who
    if kind.startswith("late"):
        assert codes == [0, 0], outputs
    elif kind.startswith("kill"):
        assert codes[other] == 1, outputs
        assert f"process {who} of 2 was killed" in outputs[other]
    elif kind.startswith("interrupt"):
        assert codes[who] == 130, outputs
        assert codes[other] in (0, 130), outputs
    else:
        assert codes == [2, 2], outputs
        text = {"config": r"optim.lr: .* in process 0, .* in process 1", "refusal": "nothing", "flag": "--nothing"}
        assert all(re.search(text[kind[:-1]], output) for output in outputs), outputs


@pytest.mark.parametrize("kind", ["kill0", "config1"])
def test_two_processes_end_together(kind, tmp_path):
    scene(kind, tmp_path)


@pytest.mark.torture
@pytest.mark.parametrize(
    "kind", ["kill0", "kill1", "interrupt0", "interrupt1", "config1", "late1", "refusal1", "flag0", "late0", "refusal0"]
)
def test_scenes_of_two_processes(kind, tmp_path):
    scene(kind, tmp_path)
