"""Scripts of studies name what exists, and the table of `make bench` has its rows."""

import ast
import importlib
import json
import runpy
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment

SCRIPTS = sorted((ROOT / "experiments").glob("*/*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_a_script_imports_from_the_package_exists(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("vit_jax", "configs")):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_a_row_of_the_benchmarks_compares_with_a_peer():
    command = [sys.executable, ROOT / "experiments" / "speed_202611" / "bench.py", "--only=vit --help", "--rounds=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, _, row = done.stdout.splitlines()
    assert header.count("|") == row.count("|") == 5
    seconds, peer = row.split("|")[2:4]
    assert float(seconds.removesuffix(" s ")) > 0
    assert float(peer.split()[0]) > 0


def test_the_time_to_an_accuracy_is_that_of_the_first_evaluation_that_reached_it(tmp_path):
    timing = runpy.run_path(str(ROOT / "experiments" / "speed_202611" / "cifar10.py"))
    about = {"config": {"batch_size": 100}, "data": {"num_examples": 1000}, "hardware": "a device"}
    rows = [
        {"step": 10, "images_per_second": 1.0, "seconds": 10.0},  # with what compiling took
        {"step": 20, "images_per_second": 50.0, "mfu": 0.25, "seconds": 20.0, "test/accuracy": 0.899},
        {"step": 30, "images_per_second": 70.0, "mfu": 0.35, "seconds": 30.0, "test/accuracy": 0.945},
        {"step": 40, "images_per_second": 60.0, "mfu": 0.3, "seconds": 40.0, "test/accuracy": 0.942},
    ]
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = timing["summary"](tmp_path, uncounted=5.0)
    assert found["reached"] == {
        "90 %": {"seconds": 35.0, "epochs": 3.0},
        "94 %": {"seconds": 35.0, "epochs": 3.0},
        "95 %": None,
    }
    assert (found["images_per_second"], found["mfu"], found["seconds"], found["epochs"]) == (60.0, 0.3, 45.0, 4.0)
    header, _, row = timing["table"](found).splitlines()
    assert header.count("|") == row.count("|")
    assert "94.20 %" in row
    assert "not reached" in row
