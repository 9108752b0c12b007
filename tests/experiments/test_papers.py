"""The tables of papers in experiments/: published numbers with their source, and a sweep with a run for each."""

import ast
import json
import re

import pytest

from tests.conftest import ROOT
from vit_jax import config as configs
from vit_jax import config_file
from vit_jax.sweeps import check

FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/sweep.py"))
TABLES = [folder for folder in FOLDERS if (folder / "paper.json").exists()]
# What sweeps make before others begin from it; not all of these runs stand in a table.
STAGES = {"deit3": ["pretrain"], "vit_table5": ["pretrain"]}
# What the sweeps of our own studies have to be told.
ARGUMENTS = {
    "cifar10_patches_202611": "folder:DATA", "pretraining_pays_202611": "DATA", "recipes_202611": "folder:DATA",
}  # fmt: skip
ROW = {"name": str, "where": dict, "published": float, "spread": float | None, "note": str}


def named(folders):
    return [pytest.param(folder, id=folder.name) for folder in folders]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def runs_of(folder, argument=""):
    """The config of each run of a sweep, flat."""
    file = f"experiments/{folder.name}/sweep.py"
    sweep = check.read_sweep(f"{file}:{argument}" if argument else file, ())
    configs_of_runs = [
        config_file.load(check.config_of(sweep, run), check.flags_of(run)).to_dict() for run in sweep.runs
    ]
    return sweep, [configs.flatten(config) for config in configs_of_runs]


def table_of(folder):
    return json.loads((folder / "paper.json").read_text())


def of(row, config):
    return all(config.get(key) == value for key, value in row["where"].items())


@pytest.mark.parametrize("folder", named(TABLES))
def test_a_table_has_the_form_that_the_report_reads(folder):
    table = table_of(folder)
    assert set(table) == {"title", "source", "metric", "unit", "mode", "rows"}
    assert "arXiv:" in table["source"]
    assert (table["unit"], table["mode"]) == ("%", "max")
    for row in table["rows"]:
        assert set(row) == set(ROW)
        assert all(isinstance(row[key], kind) for key, kind in ROW.items()), row
        assert 0 < row["published"] < 100
    names = [row["name"] for row in table["rows"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("folder", named(TABLES))
def test_every_run_of_a_sweep_is_of_one_line_and_every_line_has_a_run(folder):
    rows = table_of(folder)["rows"]
    sweep, runs = runs_of(folder)
    assert sweep.metric == table_of(folder)["metric"]
    lines = [[row["name"] for row in rows if of(row, config)] for config in runs]
    assert [line for line in lines if len(line) != 1] == []
    before = [config for stage in STAGES.get(folder.name, ()) for config in runs_of(folder, stage)[1]]
    of_stages = [[row["name"] for row in rows if of(row, config)] for config in before]
    assert max(map(len, of_stages), default=0) <= 1
    reached = [name for line in lines + of_stages for name in line]
    assert sorted(reached) == sorted(row["name"] for row in rows)


@pytest.mark.parametrize("folder", named(TABLES))
def test_every_published_number_is_one_that_its_config_states(folder):
    table = table_of(folder)
    papers = re.findall(r"arXiv:(\d+\.\d+)", table["source"])
    texts = [ast.get_docstring(ast.parse(path.read_text())) or "" for path in (ROOT / "configs").glob("*.py")]
    stated = "\n".join(text for text in texts if any(paper in text.partition("\n")[0] for paper in papers))
    numbers = {float(number) for number in re.findall(r"\d+\.\d+", stated)}
    assert [row for row in table["rows"] if row["published"] not in numbers] == []


@pytest.mark.parametrize("folder", named(TABLES))
def test_a_table_tells_its_source_and_what_was_not_run(folder):
    readme = (folder / "README.md").read_text()
    assert readme.partition("\n")[0].endswith("?"), "the question comes first"
    for paper in re.findall(r"arXiv:\d+\.\d+", table_of(folder)["source"]):
        assert paper in readme
    assert f"sweep experiments/{folder.name}/sweep.py" in readme
    assert f"--paper=experiments/{folder.name}" in readme
    assert "not run" in readme.lower() or "ours" in readme


@pytest.mark.parametrize("folder", named(folder for folder in FOLDERS if folder not in TABLES))
def test_the_runs_of_our_own_studies_are_valid(folder):
    sweep, runs = runs_of(folder, ARGUMENTS.get(folder.name, ""))
    assert len(runs) == len(sweep.runs) >= 2
    assert f"sweep experiments/{folder.name}/sweep.py" in (folder / "README.md").read_text()


def test_every_folder_is_in_the_index():
    folders = {path.parent.name for path in (ROOT / "experiments").glob("*/README.md")}
    index = (ROOT / "experiments" / "README.md").read_text()
    assert {
        name for name, place in re.findall(r"^\| \[(\w+)\]\((\w+)\) \|", index, re.MULTILINE) if name == place
    } == folders
