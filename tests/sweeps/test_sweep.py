"""python -m vit_jax sweep, with runs that train."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY_FLAGS, environment, losses, rows
from vit_jax import __main__ as vit

SWEEP = f"""
from vit_jax.runs.sweeps.space import Sweep, product, seeds
def get_sweep(arg=""):
    return Sweep({str(ROOT / "configs" / "digits.py")!r}, product({{"optim.lr": [1e-3, 3e-3]}}, seeds(int(arg or 1))), "test/accuracy")
"""
TINY = [*TINY_FLAGS[1:], "--config.checkpoint.every=5", "--config.steps=40"]  # without --config


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP)
    return path


def start(*words, env=None):
    command = [sys.executable, "-m", "vit_jax", "sweep", *map(str, words)]
    env = env or environment()
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*words, env=None):
    """Run a sweep to its end and return its table."""
    process = start(*words, env=env)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output[output.index(" run ") :]


def states(folder):
    return [run["state"] for run in json.loads((folder / "sweep.json").read_text())["runs"]]


def begins(folder, name):
    """Return the steps at which a run was resumed."""
    return [int(step) for step in re.findall(r"^resuming at step (\d+)", log(folder, name), re.MULTILINE)]


def log(folder, name):
    return (folder / f"{name}.log").read_text()


def same(one, other, names):
    """Assert that two runs have the same losses, and that each step was taken once over all attempts."""
    for name in names:
        assert losses(one / name) == losses(other / name), name
        taken = re.findall(r"^step +(\d+)/\d+  loss", log(other, name), re.MULTILINE)
        assert taken == [str(row["step"]) for row in rows(one / name) if "loss" in row], name


def test_a_killed_sweep_resumes_and_ends_as_a_run_that_was_not_killed(tmp_path, file, train):
    file.write_text(SWEEP.replace("[1e-3, 3e-3]", "[1e-3]"))
    out, name = tmp_path / "out", "lr=0.001,seed=0"
    flags = [file, *TINY, f"--out={out}"]
    first = start(*flags)
    while not any((out / name / "checkpoints").glob("*")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert re.search(rf"{name} +finished +40/40", finish(*flags))
    assert states(out) == ["finished"]
    assert begins(out, name)
    assert train(TINY_FLAGS[0], *TINY, "--config.optim.lr=1e-3", f"--workdir={tmp_path / 'whole' / name}") == 0
    same(tmp_path / "whole", out, [name])


def test_mistakes_end_with_exit_code_2_and_start_nothing(tmp_path, file, capsys):
    out = tmp_path / "out"
    for words in (
        [f"{file}:x", f"--out={out}"],
        [str(file), f"--out={out}", "--config.stepss=3"],
        [str(file), f"--out={out}", "--jobs=0"],
        [str(file), "--out=gs://bucket/sweep"],
        [str(file), f"--out={out}", "--job=3"],
        [str(file)],
    ):
        assert vit.main(["sweep", *words]) == 2, words
        assert capsys.readouterr().err.startswith("error: ")
    assert not out.exists()


def test_a_dry_run_prints_commands_and_starts_nothing(tmp_path, file, capsys):
    out = tmp_path / "out"
    assert vit.main(["sweep", f"{file}:2", f"--out={out}", "--config.steps=7", "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "# lr=0.001,seed=0"
    assert printed[1].endswith(
        f"--workdir={out}/lr=0.001,seed=0 --config.steps=7 --config.optim.lr=0.001 --config.seed=0"
    )
    assert len(printed) == 8
    assert not out.exists()


@pytest.mark.torture
def test_twelve_runs_killed_twice_end_as_an_undisturbed_sweep(tmp_path):
    """Run the whole sweep of experiments/digits_sweep_202611 and print the table and the attempts."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # with code as fast as a user's
    table = finish(*TWELVE, f"--out={tmp_path / 'undisturbed'}", env=env)
    killed_twice(tmp_path / "disturbed", env)
    assert finish(*TWELVE, f"--out={tmp_path / 'disturbed'}", env=env) == table
    print(f"\n{table}")
    runs = json.loads((tmp_path / "disturbed" / "sweep.json").read_text())["runs"]
    assert states(tmp_path / "disturbed") == ["finished"] * 12
    same(tmp_path / "undisturbed", tmp_path / "disturbed", [run["name"] for run in runs])
    for run in runs:
        print(run["name"], "attempts", run["attempts"], "resumed at", begins(tmp_path / "disturbed", run["name"]))
    assert sum(run["attempts"] > 1 for run in runs) >= 2


TWELVE = ["experiments/digits_sweep_202611/sweep.py", "--jobs=2"]


def killed_twice(out, env):
    """Kill the sweep a while after two runs are finished, and again after six."""
    moments = random.Random(0)
    for count in (2, 6):
        process = start(*TWELVE, f"--out={out}", env=env)
        while not (out / "sweep.json").exists() or states(out).count("finished") < count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        time.sleep(moments.uniform(5.0, 15.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
