"""Runs of every objective on images and texts: resumed, killed, and over 8 virtual devices with divided parameters."""

import shutil
import subprocess

import numpy as np
import pytest

from tests.conftest import ROOT, WITHOUT_REPORT, checkpoint, environment, forked, kill_at, losses, on
from tests.words import toy
from vit_jax import main

TEXT = {**toy.TEXT_TOWER, "width": 64, "mlp_dim": 64, "out_dim": 64}
TASKS = {
    "siglip": {"type": "siglip.Siglip", "text": TEXT},
    "clip": {"type": "clip.Clip", "text": TEXT | {"causal": True, "pool": "eos", "out_bias": False}},
    "caption": {
        "type": "caption.Caption", "decoder_width": 64, "decoder_depth": 1, "decoder_mlp_dim": 64, "decoder_heads": 2,
    },
}  # fmt: skip
# Wide enough that FSDP divides some of the parameters.
CONFIG = """
from pathlib import Path

from tests.words import toy


def get_config():
    config = toy.config(Path({place!r}))
    config.model.update({{"width": 64, "mlp_dim": 64}})
    config.task, config.evals = {task!r}, {{}}
    config.data.eval_preprocess = "resize(16)"
    return config
"""


def tasks(*sample):
    """See conftest.on."""
    return on(TASKS, sample, lambda name: f"words-{name}")


@pytest.fixture(scope="module")
def run(request, place, tmp_path_factory):
    """The flags of a run, and its workdir, which nothing disturbed."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "config.py").write_text(CONFIG.format(place=str(place), task=TASKS[request.param]))
    flag = f"--config={folder / 'config.py'}"
    assert main.main([flag, f"--workdir={folder / 'run'}"]) == 0
    return flag, folder / "run"


@tasks("siglip", "caption")
def test_it_resumes_with_the_same_bytes(run, tmp_path):
    flag, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert main.main([flag, f"--workdir={tmp_path / 'run'}"]) == 0
    assert losses(tmp_path / "run") == losses(workdir)
    assert checkpoint(tmp_path / "run") == checkpoint(workdir)


@tasks("siglip")
def test_eight_devices_have_the_losses_of_one(run, tmp_path):
    flag, workdir = run
    forked(["train", flag, f"--workdir={tmp_path / 'run'}", "--config.mesh={'data': 2, 'fsdp': 4}"], devices=8)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(workdir), rtol=1e-5)


@tasks()
def test_a_killed_run_ends_as_one_that_was_not(run, tmp_path):
    flag, workdir = run
    argv = [*WITHOUT_REPORT, flag, f"--workdir={tmp_path / 'run'}"]
    kill_at(argv, "step 3/4")
    assert subprocess.run(argv, cwd=ROOT, env=environment(), check=False).returncode == 0
    assert checkpoint(tmp_path / "run") == checkpoint(workdir)
