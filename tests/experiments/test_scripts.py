"""Scripts of studies name what exists, and the table of `make bench` has its rows."""

import ast
import importlib
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
