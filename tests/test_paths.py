"""Paths that people type: ~ in flags, configs and recipe arguments, empty ones, and any characters."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from configs.arguments import parse
from tests.conftest import ROOT, TINY_FLAGS
from tests.data.test_tfds import write_dataset
from tests.reports.made import finished
from vit_jax.__main__ import main as vit
from vit_jax.checkpoint.remote import Workdir
from vit_jax.config.load import load
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.table import Table
from vit_jax.data.sources.tfds import Tfds
from vit_jax.types import UserError

KNOWN = {"model": "", "data": "", "size": "384", "recipe": ("vit", "augreg"), "epochs": 0}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with images, a table and a data set, and an empty current folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("a", "b"):
        (tmp_path / "home/images" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "home/images" / name / f"{i}.png")
    (tmp_path / "home/t.csv").write_text("image,x\n~/images/a/0.png,1\nimages/b/0.png,0\n")
    write_dataset(tmp_path / "home/tfds")
    yield tmp_path / "home"
    assert not os.listdir(tmp_path / "cwd")


def test_a_tilde_is_the_home_folder_in_every_config_path(home):
    assert len(Folder("~/images", "all")) == 6
    table = Table("~/t.csv")
    assert [table[i]["image"].decode().shape for i in range(2)] == [(8, 8, 3)] * 2
    assert len(Tfds("tiny", "train", "~/tfds")) == 10
    assert Workdir("~/run").path == home / "run"
    shutil.copy(ROOT / "configs/digits.py", home / "digits.py")
    assert load("~/digits.py").steps == load(str(ROOT / "configs/digits.py")).steps


def test_a_tilde_is_the_home_folder_in_the_variable_of_tfds(home, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~/tfds")
    assert len(Tfds("tiny", "train")) == 10


def test_a_tilde_is_the_home_folder_in_every_flag(home, train, capsys, monkeypatch):
    assert train(*TINY_FLAGS, "--workdir=~/run", "--config.steps=2") == 0
    assert (home / "run/config.json").exists()
    assert vit(["predict", "--model=~/run@2", "~/images", "~/images/a/0.png", "--json"]) == 0
    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert paths == [
        *(str(home / "images" / n / f"{i}.png") for n in "ab" for i in range(3)),
        str(home / "images/a/0.png"),
    ]
    assert vit(["prepare", "--data=folder:~/images", "--out=~/out"]) == 0
    assert (home / "out/images/1.0.0/features.json").exists()
    assert vit(["prepare", "--data=tfds:tiny", "--data_dir=~/tfds", "--min_side=4", "--out=~/small"]) == 0
    assert (home / "small/tiny/1.0.0/features.json").exists()
    finished(home / "runs/x", 0.5)
    assert vit(["report", "~/runs", "--out=~/report"]) == 0
    assert (home / "report/report.csv").exists()
    assert vit(["convert", "--model=~/run", "--to=timm", "--out=~/model"]) == 0
    assert (home / "model").is_dir()
    monkeypatch.chdir(ROOT)
    assert vit(["sweep", "experiments/digits_sweep_202611/sweep.py", "--out=~/sweep", "--dry-run"]) == 0
    assert f"--workdir={home}/sweep/" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["report", ""],
        ["report", "{runs}", ""],
        ["report", "{runs}", "--out="],
        ["report", "{runs}", "--paper="],
        ["predict", "--model=x", ""],
        ["prepare", "--data=folder:{runs}", "--out="],
        ["convert", "--model=x", "--to=npz", "--out="],
        ["sweep", "x.py", "--out="],
        ["launch", "slurm", "--out=", "--dry-run", "--", "--config=x.py", "--workdir=y"],
    ],
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, capsys, words):
    finished(tmp_path / "runs/x", 0.5)
    monkeypatch.chdir(tmp_path / "runs")
    assert vit([word.format(runs=tmp_path / "runs") for word in words]) == 2
    assert "it is empty" in capsys.readouterr().err
    assert os.listdir(tmp_path / "runs") == ["x"]


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("model=sweep/lr=0.001,width=16,data=pets", {"model": "sweep/lr=0.001,width=16", "data": "pets"}),
        ('model="sweep/size=3,width=16",data=pets', {"model": "sweep/size=3,width=16", "data": "pets"}),
        ("model='a, b/c',size=3", {"model": "a, b/c", "size": "3"}),
        ("data=folder:/a,b/c=3,d,model=x", {"data": "folder:/a,b/c=3,d", "model": "x"}),
        ('data=folder:"/a,size=3/c",model=x', {"data": "folder:/a,size=3/c", "model": "x"}),
        ('data="folder:/a,size=3/c",epochs=2', {"data": "folder:/a,size=3/c", "epochs": 2}),
        ("model=a,b/c,size=3", {"model": "a,b/c", "size": "3"}),
        ("model=it's/lr=1,epochs=2", {"model": "it's/lr=1", "epochs": 2}),
    ],
)
def test_a_recipe_takes_any_path(arg, expected):
    given = parse(arg, **KNOWN)
    assert {key: given[key] for key in expected} == expected
    assert all(given[key] == parse("", **KNOWN)[key] for key in KNOWN if key not in expected)


@pytest.mark.parametrize(
    "arg", ["varaint=3", "model=x,siez=3", "recipe=vit,foo", "model=", 'model="a,size=3', "size", "epochs=x"]
)
def test_a_misspelt_recipe_argument_is_an_error(arg):
    with pytest.raises(ValueError, match="found"):
        parse(arg, **KNOWN)


def test_a_recipe_begins_from_a_run_of_a_sweep():
    config = load(f"{ROOT}/configs/finetune.py:model=sweep/lr=0.001,width=16,data=pets")
    assert config.init.ref == "sweep/lr=0.001,width=16"


def test_the_folder_of_a_config_may_have_a_colon(tmp_path):
    (tmp_path / "a:b").mkdir()
    shutil.copy(ROOT / "configs/digits.py", tmp_path / "a:b/x.py")
    assert load(str(tmp_path / "a:b/x.py")).steps
    with pytest.raises(UserError, match="no file"):
        load(str(tmp_path / "a:b/none.py:arg"))


def test_a_workdir_that_orbax_cannot_write_is_refused_before_any_compile(tmp_path, train, capsys):
    assert train(*TINY_FLAGS, f"--workdir={tmp_path}/run\udcff", "--config.steps=2") == 2
    assert "expected UTF-8" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_workdir_may_have_any_other_name_which_is_printed_as_text(tmp_path, train, capsys, draws):
    name = "run \x1b[31m\n$x$ 'é"
    assert train(*TINY_FLAGS, f"--workdir={tmp_path}/{name}", "--config.steps=2") == 0
    assert (tmp_path / name / "report/curves.png").exists()
    output = capsys.readouterr().out
    assert r"run \x1b[31m\n$x$ 'é/report" in output
    assert "\x1b" not in output
