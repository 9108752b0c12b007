"""The tables of papers in experiments/: published numbers with their source, and a sweep with a run for each."""

import ast
import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vit_jax.config import factory as configs
from vit_jax.config import load as config_file
from vit_jax.runs.sweeps import sweep_file
from vit_jax.runs.sweeps.space import run_names
from vit_jax.types import UserError

TABLES = sorted(path.parent for path in (ROOT / "experiments").glob("*/paper.json"))
# Stages whose runs others start from; not all of these runs are in a table.
STAGES = {"deit3": ["pretrain"], "vit_table5": ["pretrain"]}
# Arguments of the sweeps of our own studies.
ARGUMENTS = [
    ("cifar10_patches_202611", ""),
    ("cifar10_patches_202611", "folder:DATA"),
    ("pretraining_pays_202611", "DATA"),
    ("recipes_202611", "recipe,folder:DATA"),
    ("recipes_202611", "strong,folder:DATA"),
    ("recipes_202611", "teacher,folder:DATA"),
    ("small_data_202611", ""),
    ("small_data_202611", "folder:DATA"),
]
ROW = {"name": str, "where": dict, "published": float, "spread": float | None, "note": str}


def named(folders):
    return [pytest.param(folder, id=folder.name) for folder in folders]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def runs_of(folder, argument=""):
    """Return the sweep and the flattened config of each run."""
    file = f"experiments/{folder.name}/sweep.py"
    sweep = sweep_file.load_sweep(f"{file}:{argument}" if argument else file, ())
    configs_of_runs = [
        config_file.load(sweep_file.config_of(sweep, run), sweep_file.config_flags(run)).to_dict() for run in sweep.runs
    ]
    return sweep, [configs.flatten_config(config) for config in configs_of_runs]


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
def test_patches_tile_the_images_of_every_run(folder):
    for config in runs_of(folder)[1]:
        name = config.get("model.variant") or config["init.ref"]
        patch = re.search(r"(?:Ti|S|B|L|H)[/_](\d+)", name)
        assert config["image_size"] % int(patch[1]) == 0, name


@pytest.mark.parametrize("folder", named(TABLES))
def test_every_published_number_is_one_that_its_config_states(folder):
    table = table_of(folder)
    papers = re.findall(r"arXiv:(\d+\.\d+)", table["source"])
    texts = [ast.get_docstring(ast.parse(path.read_text())) or "" for path in (ROOT / "configs").glob("*.py")]
    stated = "\n".join(text for text in texts if any(paper in text.partition("\n")[0] for paper in papers))
    numbers = {float(number) for number in re.findall(r"\d+\.\d+", stated)}
    assert [row for row in table["rows"] if row["published"] not in numbers] == []


@pytest.mark.parametrize("folder", named(TABLES))
def test_a_readme_names_its_source_and_what_was_not_run(folder):
    readme = (folder / "README.md").read_text()
    assert readme.partition("\n")[0].endswith("?"), "the question comes first"
    for paper in re.findall(r"arXiv:\d+\.\d+", table_of(folder)["source"]):
        assert paper in readme
    assert f"sweep experiments/{folder.name}/sweep.py" in readme
    assert f"--paper=experiments/{folder.name}" in readme
    assert "not run" in readme.lower() or "ours" in readme


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_the_runs_of_our_own_studies_are_valid(name, argument):
    sweep, _ = runs_of(ROOT / "experiments" / name, argument)
    assert sweep.metric == "test/accuracy"
    table = argument.partition(",")[0] if "," in argument else ""
    assert (
        f"sweep experiments/{name}/sweep.py{table and ':'}{table}"
        in (ROOT / "experiments" / name / "README.md").read_text()
    )


@pytest.mark.parametrize("argument", ["", "folder:DATA", "both,folder:DATA", "recipe,tfds:cifar10"])
def test_a_study_lists_its_arguments(argument):
    with pytest.raises(UserError, match="expected TABLE,folder:PATH, where TABLE is recipe, strong, teacher"):
        runs_of(ROOT / "experiments" / "recipes_202611", argument)


def test_the_teacher_is_a_run_of_the_sweep_before():
    study = ROOT / "experiments" / "recipes_202611"
    before, _ = runs_of(study, "recipe,folder:DATA")
    _, runs = runs_of(study, "teacher,folder:DATA")
    places = {config["teacher"] for config in runs if config.get("teacher")}
    assert places == {f"workdirs/recipes_202611/recipe/{run_names(before.runs)[0]}"}


def test_the_few_images_are_the_first_hundred_of_each_class(tmp_path):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "all" / split / label).mkdir(parents=True)
            for number in range(120):
                (tmp_path / "all" / split / label / f"{number:04}.jpg").touch()
    prepare = ROOT / "experiments" / "recipes_202611" / "prepare.py"
    subprocess.run([sys.executable, prepare, tmp_path / "all", tmp_path / "few"], check=True)
    found = sorted(path.name for path in (tmp_path / "few" / "train" / "dog").iterdir())
    assert found == [f"{number:04}.jpg" for number in range(100)]
    assert len(list((tmp_path / "few" / "test" / "cat").iterdir())) == 120


def test_every_folder_is_in_the_index():
    folders = {
        path.parent.name for path in (ROOT / "experiments").glob("*/*") if path.suffix in (".md", ".py", ".json")
    }
    assert all((ROOT / "experiments" / folder / "README.md").exists() for folder in folders)
    index = (ROOT / "experiments" / "README.md").read_text()
    assert {
        name for name, place in re.findall(r"^\| \[(\w+)\]\((\w+)\) \|", index, re.MULTILINE) if name == place
    } == folders
