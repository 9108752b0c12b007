"""What every objective must hold: it resumes, shards, accumulates and is measured during training, on tiny models of digits."""

import shutil
import subprocess

import numpy as np
import pytest

from tests.conftest import ROOT, WITHOUT_REPORT, checkpoint, environment, forked, kill_at, losses, on, rows
from vit_jax import inference, main

# The objectives, and whether they can be accumulated.
OBJECTIVES = {
    "mae": True, "simmim": True, "ijepa": True, "lejepa": False, "dino": True, "ibot": True, "dinov2": False, "vqkd": True,
    "beit": True,
}  # fmt: skip
TEST = {"source": {"type": "digits.Digits", "split": "test"}, "preprocess": "resize(16)", "batch_size": 500}
EVALS = {
    "knn": {"type": "knn.Knn", "train": {"type": "digits.Digits", "split": "train"}, **TEST},
    "collapse": {"type": "collapse.Collapse", **TEST},
}
SHORT = (
    *("--config.steps=6", "--config.batch_size=16", "--config.log.every=1", "--config.log.tensorboard=False"),
    *("--config.checkpoint.every=3", "--config.model.width=16", "--config.model.depth=1", "--config.model.mlp_dim=16"),
    *("--config.model.num_heads=2", "--config.optim.schedule.warmup_steps=2", f"--config.evals={EVALS}"),
)
NO_EVALS = ("--config.evals={}", "--config.data.eval_preprocess=resize(16)")
OWN = {"ijepa": ("--config.task.predictor_depth=1",), "vqkd": ("--config.task.teacher_width=16",)}


def tiny(name, workdir, *flags):
    """The flags of a tiny run; vqkd learns from a run of mae, and beit from one of vqkd, which lie beside it."""
    config = f"--config={ROOT / 'configs' / 'labelfree.py'}:{name}"
    return [config, f"--workdir={workdir}", *SHORT, *OWN.get(name, ()), *flags]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Make a run of an objective on one device, once, and return its workdir and the flags of its teacher."""
    made = {}

    def run(name):
        if name not in made:
            teacher = {"vqkd": "mae", "beit": "vqkd"}.get(name)
            flags = () if teacher is None else (f"--config.teacher={run(teacher)[0]}",)
            workdir = tmp_path_factory.mktemp(name) / "run"
            assert main.main(tiny(name, workdir, *flags)) == 0
            made[name] = workdir, flags
        return made[name]

    return run


def objectives(*sample):
    """See conftest.on; one worker makes the runs that learn from each other."""
    return on(OBJECTIVES, sample, lambda name: f"objective-{'mae' if name in ('vqkd', 'beit') else name}")


@pytest.fixture
def run(request, runs):
    """The name of an objective, its workdir, and the flags of its teacher."""
    return request.param, *runs(request.param)


@objectives(*(name for name in OBJECTIVES if name != "dino"))  # configs/dino.py is trained in test_configs
def test_its_features_are_measured_during_training(run):
    _, workdir, _ = run
    last = rows(workdir)[-1]
    assert last["knn/num_examples"] == 360
    assert last["knn/accuracy"] > 0.3
    assert 1 <= last["collapse/rank"] <= 16


@objectives("mae", "lejepa", "dinov2", "vqkd")
def test_it_resumes_with_the_same_bytes(run, tmp_path):
    name, workdir, flags = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert main.main(tiny(name, tmp_path / "run", *flags, *NO_EVALS)) == 0
    assert losses(tmp_path / "run") == losses(workdir)
    assert checkpoint(tmp_path / "run") == checkpoint(workdir)


@objectives("dinov2")
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--config.mesh={'data': 2, 'fsdp': 4}",), id="fsdp"),
        pytest.param(("--config.parallel=pmap",), id="pmap", marks=pytest.mark.torture),
    ],
)
def test_eight_devices_have_the_losses_of_one(run, flags, tmp_path):
    name, workdir, teacher = run
    if "--config.parallel=pmap" in flags and not OBJECTIVES[name]:
        pytest.skip("refused")
    forked(["train", *tiny(name, tmp_path / "run", *teacher, *NO_EVALS, *flags)], devices=8)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(workdir), rtol=1e-5)


@objectives("mae", "lejepa", "ibot", "vqkd")
def test_accumulation_has_the_losses_of_the_whole_batch_or_is_refused(run, tmp_path, capsys):
    name, workdir, teacher = run
    flag = "--config.grad={'type': 'accumulate.Accumulate', 'microbatches': 2}"
    code = main.main(tiny(name, tmp_path / "run", *teacher, *NO_EVALS, flag))
    if OBJECTIVES[name]:
        assert code == 0
        np.testing.assert_allclose(losses(tmp_path / "run"), losses(workdir), rtol=1e-5)
    else:
        assert code == 2
        assert "decomposable" in capsys.readouterr().err


@objectives()
def test_a_killed_run_ends_as_one_that_was_not(run, tmp_path):
    name, workdir, teacher = run
    argv = [*WITHOUT_REPORT, *tiny(name, tmp_path / "run", *teacher)]
    kill_at(argv, "step 5/6")
    assert subprocess.run(argv, cwd=ROOT, env=environment(), check=False).returncode == 0
    assert checkpoint(tmp_path / "run") == checkpoint(workdir)


@pytest.mark.xdist_group("objective-mae")
def test_a_classifier_begins_from_its_backbone(runs, tmp_path, capsys):
    workdir, _ = runs("mae")
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
