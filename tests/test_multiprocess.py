"""Processes that train together, as on the hosts of a pod: here several on one machine, with two virtual devices each."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, TINY_FLAGS, WITHOUT_REPORT, checkpoint, environment, losses, rows, run
from tests.forked import Forked
from vit_jax.distributed import OWN

pytestmark = pytest.mark.xdist_group("multiprocess")  # so that the run of one process is made once
STEPS = ("--config.steps=20", "--config.checkpoint.every=10", "--config.checkpoint.keep=2")
MESHES = {
    "data": {"data": -1},
    "fsdp": {"data": 1, "fsdp": -1},
    "tensor": {"data": -1, "tensor": 2},
    "all": {"data": -1, "fsdp": 2, "tensor": 2},
}
# Wide enough that something is divided over fsdp.
MODEL = "--config.model={'type': 'vit.ViT', 'width': 64, 'depth': 1, 'mlp_dim': 64, 'num_heads': 2, 'patch_size': 4}"


def together(workdir: Path, count: int, *flags: str) -> list[subprocess.Popen]:
    """Starts `count` processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [*WITHOUT_REPORT, *TINY_FLAGS, MODEL, f"--workdir={workdir}", *flags]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(2) | dict(zip(OWN, (f"localhost:{port}", str(count), str(index)), strict=True)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def outputs(processes: list[subprocess.Popen]) -> list[str]:
    """What each printed, once all have ended well."""
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(told)
    return ["".join(line for line in text.splitlines(True) if "peer ranks" not in line) for text in told]


def back_to_half(workdir: Path) -> None:
    """As if the run had been stopped at step 10."""
    shutil.rmtree(workdir / "checkpoints" / "20")


def compare(workdir: Path, one: Path) -> None:
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-4)
    ours, theirs = rows(workdir)[-1], rows(one)[-1]
    assert ours["test/num_examples"] == theirs["test/num_examples"] == 360
    assert ours["test/accuracy"] == theirs["test/accuracy"]
    np.testing.assert_allclose(
        [ours[k] for k in ("test/loss", "test/ece")], [theirs[k] for k in ("test/loss", "test/ece")], rtol=1e-3
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process with one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    run(folder, MODEL, *STEPS)
    return folder


def matrix(count, mesh):
    return pytest.param(count, mesh, id=f"{count}-{mesh}", marks=[] if (count, mesh) in SAMPLE else pytest.mark.torture)


SAMPLE = [(2, "all")]


@pytest.mark.parametrize(("count", "mesh"), [matrix(count, mesh) for count in (2, 4) for mesh in MESHES])
def test_processes_train_as_one_and_hand_over_to_one(tmp_path, one, count, mesh):
    workdir, flags = tmp_path / "run", (*STEPS, f"--config.mesh={MESHES[mesh]}")
    first, *others = outputs(together(workdir, count, *flags))
    assert "test accuracy" in first
    assert not any(others), "only the first process prints"
    compare(workdir, one)
    before = checkpoint(workdir)
    back_to_half(workdir)
    assert "resuming at step 10" in run(workdir, MODEL, *STEPS)
    compare(workdir, one)
    assert checkpoint(workdir).keys() == before.keys()


@pytest.mark.torture
def test_processes_take_over_from_one(tmp_path, one):
    shutil.copytree(one, tmp_path / "run")
    back_to_half(tmp_path / "run")
    first, _ = outputs(together(tmp_path / "run", 2, *STEPS, f"--config.mesh={MESHES['fsdp']}"))
    assert "resuming at step 10" in first
    compare(tmp_path / "run", one)


def test_a_signal_to_any_process_saves_the_same_step_in_all(tmp_path):
    processes = together(tmp_path / "run", 2, "--config.steps=100000", "--config.log.every=1")
    for line in processes[0].stdout:
        if line.startswith("step"):
            break
    processes[1].terminate()
    first, _ = outputs(processes)
    assert "SIGTERM: saved step" in first
    saved = first.partition("saved step ")[2].split(";")[0]
    assert (tmp_path / "run" / "checkpoints" / saved).is_dir()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "JAX_NUM_PROCESSES"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS"),
        (dict(zip(OWN, ("localhost:1", "2", "2"), strict=True)), "JAX_PROCESS_ID=2"),
    ],
)
def test_incomplete_variables_are_told(tmp_path, given, says):
    process = Forked(["train", *TINY_FLAGS, f"--workdir={tmp_path / 'run'}"], os.environ | given)
    output = process.wait()
    assert process.returncode == 2
    assert says in output
