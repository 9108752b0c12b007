"""python -m vit_jax sweep --executor=ray, on a real cluster of two nodes."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, losses, rows
from vit_jax.__main__ import main
from vit_jax.runs.sweeps.devices import ray_variables
from vit_jax.runs.sweeps.ray import Needs, job_on_node

from .ray_nodes import Nodes
from .test_sweep import TINY, begins, finish, start, states

SWEEP = """
from vit_jax.runs.sweeps.space import Sweep, seeds
def get_sweep(arg=""):
    return Sweep("configs/digits.py", seeds(int(arg)), "test/accuracy")
"""


@pytest.fixture
def nodes():
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: make parity")
    nodes = Nodes()
    nodes.start()
    nodes.start()
    yield nodes
    nodes.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP)
    return path


def resumable(folder):
    """Return the number of running runs with a checkpoint."""
    try:
        runs = json.loads((folder / "sweep.json").read_text())["runs"]
    except FileNotFoundError:
        return 0
    running = [run["name"] for run in runs if run["state"] == "running"]
    # Unfinished checkpoints have longer names.
    return sum(any(path.name.isdecimal() for path in folder.glob(f"{name}/checkpoints/*")) for name in running)


@pytest.mark.torture
def test_the_runs_of_a_lost_node_resume_on_another(tmp_path, file, nodes):
    out = tmp_path / "out"
    flags = [*TINY, "--config.steps=300", "--executor=ray", f"--address={nodes.address}"]
    process = start(f"{file}:2", *flags, f"--out={out}")
    while resumable(out) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    nodes.lose(1)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert states(out) == ["finished"] * 2
    attempts = [run["attempts"] for run in json.loads((out / "sweep.json").read_text())["runs"]]
    assert sorted(attempts) == [1, 2], output
    lost = f"seed={attempts.index(2)}"
    assert begins(out, lost)[-1] > 0
    assert all(len(losses(out / f"seed={seed}")) == 300 for seed in range(2))


@pytest.mark.torture
def test_twelve_runs_lose_a_node_half_way_and_end_as_on_one_machine(tmp_path, nodes):
    """Run the whole sweep of experiments/digits_sweep_202611 and print its table."""
    out = tmp_path / "out"
    flags = ["experiments/digits_sweep_202611/sweep.py", "--executor=ray", f"--address={nodes.address}"]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    process = start(*flags, f"--out={out}", env=env)
    while not (out / "sweep.json").exists() or states(out).count("finished") < 5 or resumable(out) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    nodes.lose(1)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    print(f"\n{output}")
    assert states(out) == ["finished"] * 12
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert sorted(run["attempts"] for run in runs) == [1] * 11 + [2]
    (lost,) = (run["name"] for run in runs if run["attempts"] == 2)
    assert begins(out, lost)[-1] > 0


@pytest.mark.torture
def test_a_sweep_on_a_cluster_that_receives_sigterm_saves_its_runs_and_resumes(tmp_path, file, nodes):
    out = tmp_path / "out"
    flags = [f"{file}:2", *TINY, "--config.steps=300", "--executor=ray", f"--address={nodes.address}", f"--out={out}"]
    for end in (signal.SIGTERM, signal.SIGKILL):
        process = start(*flags)
        while resumable(out) < 2:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(end)
        process.communicate()
        assert process.returncode == (143 if end == signal.SIGTERM else -9)
    output = finish(*flags)
    assert states(out) == ["finished"] * 2, output
    for seed in range(2):
        assert begins(out, f"seed={seed}")[-1] > 0
        assert [row["step"] for row in rows(out / f"seed={seed}")] == list(range(1, 301))


def test_a_missing_library_and_a_missing_cluster_are_reported(tmp_path, file, monkeypatch, capfd):
    flags = ["sweep", f"{file}:1", f"--out={tmp_path / 'out'}", "--executor=ray"]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(flags) == 2
    assert "pip install 'vit_jax[ray]'" in capfd.readouterr().err
    # In another process, because warnings of Ray would be errors here.
    command = [sys.executable, "-m", "vit_jax", *flags, "--address=127.0.0.1:9"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "No Ray cluster at --address=127.0.0.1:9" in ended.stderr
    assert "ray start --head" in ended.stderr


def test_flags_of_a_cluster_without_one_and_needs_without_sense_are_refused(tmp_path, file, capfd):
    flags = ["sweep", f"{file}:1", f"--out={tmp_path / 'out'}"]
    assert main([*flags, "--gpus=1"]) == 2
    assert "--executor=ray" in capfd.readouterr().err
    assert main([*flags, "--executor=ray", "--cpus=-1"]) == 2
    assert "--cpus: found '-1'" in capfd.readouterr().err


def test_a_node_takes_as_many_runs_as_its_scarcest_resource_allows():
    assert Needs(cpus=2.0).capacity({"CPU": 7.0}) == 3
    assert Needs(cpus=2.0, gpus=0.5).capacity({"CPU": 64.0, "GPU": 2.0}) == 4
    assert Needs(tpus=4).capacity({"CPU": 8.0}) == 0


@pytest.mark.parametrize(
    ("needs", "chosen", "expected"),
    [
        ({"cpus": 2}, {"CUDA_VISIBLE_DEVICES": "3"}, {"JAX_PLATFORMS": "cpu", "NPROC": "2"}),
        ({"gpus": 1}, {"CUDA_VISIBLE_DEVICES": "3", "HOME": "/"}, {"CUDA_VISIBLE_DEVICES": "3"}),
        (
            {"gpus": 0.5},
            {"CUDA_VISIBLE_DEVICES": "3"},
            {"CUDA_VISIBLE_DEVICES": "3", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"},
        ),
    ],
)
def test_a_run_sees_the_devices_that_it_was_given(needs, chosen, expected):
    assert ray_variables({}, {"cpus": 1, "gpus": 0, "tpus": 0} | needs, chosen) == expected


def test_a_run_on_virtual_devices_keeps_the_threads_that_they_need():
    given = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    assert "NPROC" not in ray_variables(given, {"cpus": 1, "gpus": 0, "tpus": 0}, {})


def test_a_folder_that_a_node_does_not_see_is_reported(tmp_path):
    fields = {"name": "a", "command": ("python",), "folder": str(tmp_path), "environment": {}}
    with pytest.raises(FileNotFoundError, match="all nodes must share --out"):
        job_on_node(fields | {"log": f"{tmp_path}/none/a.log", "lock": f"{tmp_path}/none/a"}, {"cpus": 1})


def test_a_run_on_one_chip_of_a_tpu_is_a_cluster_of_its_own():
    found = ray_variables({}, {"cpus": 1, "gpus": 0, "tpus": 1}, {"TPU_VISIBLE_CHIPS": "2"})
    assert found["TPU_VISIBLE_CHIPS"] == "2"
    assert found["TPU_PROCESS_BOUNDS"] == "1,1,1"
    assert found["JAX_NUM_PROCESSES"] == "1"
