"""What every objective must hold: it resumes, shards, accumulates and is measured during training, on tiny models of digits."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, checkpoint, environment, losses, rows
from vit_jax import inference, main

OBJECTIVES = ("mae", "dino")
SHORT = (
    *("--config.steps=20", "--config.batch_size=16", "--config.log.every=1", "--config.log.tensorboard=False"),
    *("--config.checkpoint.every=10", "--config.model.width=16", "--config.model.depth=1", "--config.model.mlp_dim=16"),
    *("--config.model.num_heads=2", "--config.evals.probe.strengths=(0.1,)", "--config.evals.probe.max_iter=20"),
)


def command(name, workdir, *flags):
    return [f"--config={ROOT / 'configs' / name}.py", f"--workdir={workdir}", *SHORT, *flags]


@pytest.fixture(scope="module", params=OBJECTIVES)
def run(request, tmp_path_factory):
    """The name of an objective, and a run of it on one device."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    assert main.main(command(request.param, workdir)) == 0
    return request.param, workdir


def test_knn_and_probe_are_measured_during_training(run):
    _, workdir = run
    last = rows(workdir)[-1]
    for evaluator in ("knn", "probe"):
        assert last[f"{evaluator}/num_examples"] == 360
        assert last[f"{evaluator}/accuracy"] > 0.3


def test_it_resumes_with_the_same_bytes(run, tmp_path):
    name, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    assert main.main(command(name, tmp_path / "run")) == 0
    assert losses(tmp_path / "run") == losses(workdir)
    assert checkpoint(tmp_path / "run") == checkpoint(workdir)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--config.mesh={'data': 2, 'fsdp': 4}",), id="fsdp"),
        pytest.param(("--config.parallel=pmap",), id="pmap", marks=pytest.mark.torture),
    ],
)
def test_eight_devices_have_the_losses_of_one(run, flags, tmp_path):
    name, workdir = run
    argv = [sys.executable, "-m", "vit_jax.main", *command(name, tmp_path / "run", *flags)]
    done = subprocess.run(argv, cwd=ROOT, env=environment(8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(workdir), rtol=1e-5)


def test_accumulation_has_the_losses_of_the_whole_batch(run, tmp_path):
    name, workdir = run
    flag = "--config.grad={'type': 'accumulate.Accumulate', 'microbatches': 2}"
    assert main.main(command(name, tmp_path / "run", flag)) == 0
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(workdir), rtol=1e-5)


def test_a_classifier_begins_from_its_backbone(run, tmp_path, capsys):
    _, workdir = run
    loaded = inference.load(workdir)
    assert loaded.class_names == ()
    assert loaded(np.zeros((2, *loaded.image_shape), np.uint8))["features"].shape == (2, 16)
    flags = (
        f"--config.init={{'ref': '{workdir}'}}",
        "--config.steps=1",
        "--config.batch_size=16",
        "--config.optim.schedule.warmup_steps=0",
        "--config.optim.layer_decay=0.5",
        "--config.model={}",
        "--config.data.preprocess=resize(16)",
    )
    assert main.main([f"--config={ROOT / 'configs'}/digits.py", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    assert "2 reset" in capsys.readouterr().out  # the head alone
