"""vit init writes a small project whose own test passes, and never overwrites."""

import subprocess
import sys

from tests.conftest import ROOT, environment
from vit_jax.__main__ import main as vit


def test_the_projects_own_test_passes(tmp_path):
    assert vit(["init", str(tmp_path / "mine")]) == 0
    own = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=tmp_path / "mine", env=own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_folder_with_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert vit(["init", str(tmp_path)]) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
