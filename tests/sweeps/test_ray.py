import importlib.util
import json
import time

import pytest

from .ray_nodes import Nodes
from .test_sweep import TINY, begins, losses, start, states

SWEEP = """
from vit_jax.sweeps.space import Sweep, seeds
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
    """How many runs are under way that have saved."""
    try:
        runs = json.loads((folder / "sweep.json").read_text())["runs"]
    except FileNotFoundError:
        return 0
    return sum(run["state"] == "running" and any(folder.glob(f"{run['name']}/checkpoints/[0-9]*")) for run in runs)


def test_the_runs_of_a_node_that_is_lost_are_taken_up_on_another(tmp_path, file, nodes):
    out = tmp_path / "out"
    flags = [*TINY, "--config.steps=300", "--executor=ray", f"--address={nodes.address}"]
    process = start(f"{file}:3", *flags, f"--out={out}")
    while resumable(out) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    nodes.lose(1)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert states(out) == ["finished"] * 3
    attempts = [run["attempts"] for run in json.loads((out / "sweep.json").read_text())["runs"]]
    assert sorted(attempts) == [1, 1, 2], output
    lost = f"seed={attempts.index(2)}"
    assert begins(out, lost)[-1] > 0
    assert all(len(losses(out / f"seed={seed}")) == 300 for seed in range(3))
