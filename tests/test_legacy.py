"""Workdirs written by the version before examples became dicts and tasks got state load, evaluate and resume."""

import json
import shutil
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from tests.conftest import ROOT, rows, sampled
from vit_jax import inference
from vit_jax.evals.evaluator import evaluate
from vit_jax.train.build import build_evaluator
from vit_jax.train.fit import fit

WORKDIRS = Path(__file__).parent / "workdirs"
NAMES = ("plain", "ema", "freeze", "init", "resident", "distill", "table", "pmap")


@pytest.fixture
def at_root(monkeypatch):
    """Their configs name other workdirs relative to the root of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_evaluates_to_the_numbers_that_it_logged(name, at_root):
    loaded = inference.load(WORKDIRS / name)
    evaluator, _ = build_evaluator("test", loaded.config["evals"]["test"])
    found, _ = evaluate(evaluator, loaded.predictor, loaded.weights)
    logged = next(row for row in rows(WORKDIRS / name) if row["step"] == 4)
    for key, value in found.items():
        assert value == pytest.approx(logged[f"test/{key}"], rel=1e-3), key


def test_the_weights_beside_an_average_load_too(at_root):
    averaged, raw = (inference.load(f"{WORKDIRS / 'ema'}{suffix}").arrays for suffix in ("@4", "@4:raw"))
    assert any(not np.array_equal(averaged[name], raw[name]) for name in raw)


@pytest.mark.parametrize("name", sampled(NAMES, "ema", "distill", "pmap"))
def test_it_resumes_with_the_losses_that_it_had(name, at_root, tmp_path):
    workdir = tmp_path / name
    shutil.copytree(WORKDIRS / name, workdir)
    before = [row["loss"] for row in rows(workdir)]
    record = json.loads((workdir / "config.json").read_text())
    fit(ml_collections.ConfigDict(record["config"]), workdir)
    after = [row["loss"] for row in rows(workdir)]
    assert len(after) == 8
    np.testing.assert_allclose(after[4:], before[4:], rtol=1e-3)
