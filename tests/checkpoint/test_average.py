"""Weights averaged with another model's: each is the mean, and models that differ are refused."""

import numpy as np
import pytest

from tests.conftest import sampled, tiny_config
from tests.words import toy
from vit_jax import inference, trees
from vit_jax.__main__ import main as vit
from vit_jax.train.fit import fit


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Workdirs of one network after other steps."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind == "towers":
        toy.write_pairs(folder)
        toy.write_tokenizer(folder)
    for seed in (0, 1):
        config = toy.config(folder) if kind == "towers" else tiny_config()
        config.steps, config.seed, config.log.tensorboard = 4, seed, False
        fit(config, folder / f"run{seed}")
    return [folder / f"run{seed}" for seed in (0, 1)]


@pytest.mark.parametrize("runs", sampled(["classifier", "towers"], "classifier"), indirect=True)
def test_the_weights_are_the_mean_of_both(runs, tmp_path):
    a, b = runs
    out = tmp_path / "mean"
    assert vit(["convert", f"--model={a}", f"--average={b}", "--share=0.25", f"--out={out}", "--to=workdir"]) == 0
    first, second, found = (trees.flatten(inference.load(place).weights) for place in (a, b, out))
    assert found.keys() == first.keys()
    for name, x in found.items():
        expected = 0.75 * np.asarray(first[name], np.float64) + 0.25 * np.asarray(second[name], np.float64)
        np.testing.assert_allclose(np.asarray(x), expected, rtol=0, atol=1e-6)
    card = (out / "README.md").read_text()
    assert "0.75 of" in card
    assert "accuracy" not in card


@pytest.mark.parametrize("runs", ["classifier"], indirect=True)
def test_another_network_is_refused(runs, tmp_path, capsys):
    (a, _), other = runs, tiny_config()
    other.model.width, other.steps = 8, 4
    fit(other, tmp_path / "narrow")
    flags = ["convert", f"--model={a}", f"--average={tmp_path / 'narrow'}", f"--out={tmp_path / 'x'}", "--to=timm"]
    assert vit(flags) == 2
    assert "--average has other parameters: " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_share_needs_a_model(tmp_path, capsys):
    assert vit(["convert", "--model=mu/8", "--share=0.5", f"--out={tmp_path / 'x'}", "--to=timm"]) == 2
    assert "found no --average" in capsys.readouterr().err
