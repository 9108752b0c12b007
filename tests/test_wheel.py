"""The wheel alone, in an empty folder: recipes, templates and pages are in it, and the commands work."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT, TINY_FLAGS, environment, rows

SWEEP = """
from vit_jax.runs.sweeps.space import Sweep, seeds

def get_sweep():
    return Sweep(config="configs/digits.py", runs=seeds(2), metric="test/accuracy")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in the wheel, a folder with its files, and a function that runs a command from an empty folder."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        place / "dist",
        ROOT,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    (file,) = (place / "dist").glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        archive.extractall(place / "site")
    (place / "empty").mkdir()

    def run(*words, cwd=place / "empty"):
        # Before the checkout that the environment knows.
        own = environment() | {"PYTHONPATH": os.pathsep.join([str(place / "site"), str(place / "empty")])}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "vit_jax", *map(str, words)], cwd=cwd, env=own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return names, place, run


def test_the_wheel_contains_recipes_templates_and_pages(wheel):
    names, _, _ = wheel
    assert {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} <= set(names)
    assert sum(name.startswith("vit_jax/cli/project/") for name in names) == len(
        list((ROOT / "vit_jax/cli/project").iterdir())
    )
    assert any(name.endswith("synsets.tsv.xz") for name in names)
    assert not any(name.startswith(("tests/", "experiments/")) for name in names)


def test_train_evaluate_and_sweep_from_an_empty_folder(wheel):
    _, place, run = wheel
    flags = [flag for flag in TINY_FLAGS if not flag.startswith("--config=")]
    run("train", "--config=configs/digits.py", "--workdir=run", "--config.steps=3", *flags)
    assert rows(place / "empty" / "run")[-1]["step"] == 3
    assert "accuracy" in run("evaluate", "--model=run", "--data=digits")
    (place / "empty" / "sweep.py").write_text(SWEEP)
    assert "--config=configs/digits.py" in run("sweep", "sweep.py", "--out=sweep", "--dry-run")


def test_a_project_of_ones_own_runs_from_anywhere(wheel):
    _, place, run = wheel
    run("init", "project")
    run(
        "train",
        f"--config={place / 'empty' / 'project' / 'config.py'}",
        f"--workdir={place / 'own'}",
        "--config.steps=3",
        cwd=place,
    )
    flags = ["--data=my_parts:MyData", "--evaluator=my_parts:MyMetric", "--trust"]
    out = run("evaluate", f"--model={place / 'own'}", *flags, cwd=place / "empty" / "project")
    assert "of across" in out
