"""Segmentation from a folder to masks: training, evaluation and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dense.made import config_of, write_folder
from vit_jax import inference
from vit_jax.__main__ import main as vit
from vit_jax.cli import evaluate, predict
from vit_jax.train.fit import fit
from vit_jax.types import UserError


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("segments")
    write_folder(root / "data", {"train": 24, "val": 6})
    metrics = fit(config_of(root / "data"), root / "run")
    return root, metrics


def test_a_linear_head_learns_colours(place):
    _, metrics = place
    assert metrics["test/miou"] > 0.6
    assert metrics["test/pixel_accuracy"] > 0.85
    assert 0 <= metrics["test/iou/red"] <= 1


def test_evaluate_measures_the_same_from_the_command_line(place, capsys):
    root, metrics = place
    flags = [f"--model={root / 'run'}", f"--data=segments:{root / 'data'}", "--json"]
    assert evaluate.main([*flags, "--evaluator=miou"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] == metrics["test/miou"]
    assert evaluate.main([*flags, "--evaluator.multi_scale=True"]) == 0
    assert 0.3 < json.loads(capsys.readouterr().out)["miou"] != metrics["test/miou"]


def test_predict_writes_masks_that_evaluate_to_the_same(place, tmp_path, capsys):
    root, metrics = place
    images = root / "data" / "images" / "val"
    assert predict.main([f"--model={root / 'run'}", str(images), f"--out={tmp_path}", "--json", "--batch_size=4"]) == 0
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    confusion = np.zeros((3, 3), np.int64)
    for row in rows:
        mask = opened(row["mask"])
        assert mask.mode == "P"
        truth = np.asarray(Image.open(root / "data" / "masks" / "val" / Path(row["path"]).name))
        np.add.at(confusion, (truth, np.asarray(mask)), 1)
        assert row["classes"]["ground"] == pytest.approx(np.mean(np.asarray(mask) == 0), abs=1e-6)
        assert opened(row["overlay"]).size == mask.size
    right = np.diag(confusion)
    assert metrics["test/miou"] == np.mean(right / (confusion.sum(axis=0) + confusion.sum(axis=1) - right))


def test_a_model_of_pixels_names_no_classes_of_images(place):
    loaded = inference.load(place[0] / "run")
    assert loaded.has_untrained_head
    with pytest.raises(UserError, match="names no classes"):
        loaded.top(np.zeros((24, 32, 3), np.uint8))


def test_masks_have_the_size_of_each_image(place, tmp_path, capsys):
    root, _ = place
    for size in ((32, 24), (70, 33)):
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / f"{size[0]}.png")
    assert predict.main([f"--model={root / 'run'}", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
    for size in ((32, 24), (70, 33)):
        assert opened(tmp_path / "out" / "masks" / f"{size[0]}.png").size == size


def test_its_images_and_their_patches_can_be_searched(place, tmp_path, capsys):
    root, _ = place
    images = root / "data" / "images" / "val"
    for feature in ("features", "tokens"):
        index = f"--index={tmp_path / feature}"
        assert vit(["search", "build", str(images), f"--model={root / 'run'}", f"--feature={feature}", index]) == 0
        capsys.readouterr()
        assert vit(["search", "query", str(images / "3.png"), index, "--k=1", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["found"]
        assert "patch" in found if feature == "tokens" else found["path"] == str(images / "3.png")
