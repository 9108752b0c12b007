"""A user's whole way without the internet: hub, fine-tuning, evaluation, export, and the other library's own verdict."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, rows
from tests.hub_server import serving
from tests.peers import timm, torch, transformers
from vit_jax import inference
from vit_jax.__main__ import main as vit

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def publish(folder):
    """A small ViT of timm with no parameter at its default, saved as on the hub."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **ARGS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.pretrained_cfg = model.pretrained_cfg | {
        "input_size": (3, 16, 16),
        "crop_pct": 0.875,
        "mean": (0.4, 0.5, 0.6),
    }
    timm.models.save_for_hf(model, folder, model_args=ARGS, safe_serialization=True)


def draw(folder):
    """Training and test photographs of two classes, one bluer than the other, of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 12)):
        for label, blue in (("day", 60), ("night", 0)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 180, (20 + i, 20 + i, 3), np.uint8)
                pixels[..., 2] += blue
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The workdir of a fine-tuning from hf:some/vit, and its images."""
    place = tmp_path_factory.mktemp("journey")
    publish(place / "published")
    draw(place / "photos")
    from vit_jax import main

    with serving({"some/vit": place / "published"}) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.address)
        patch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "cache"))
        config = f"{ROOT / 'configs' / 'finetune.py'}:model=hf:some/vit,data=folder:{place / 'photos'},size=own"
        assert (
            main.main(
                [f"--config={config}", f"--workdir={place / 'run'}", "--config.steps=30", "--config.optim.lr=0.02"]
            )
            == 0
        )
    return place / "run", place / "photos"


def test_evaluating_the_tuned_model_gives_what_training_logged(tuned, capsys):
    workdir, photos = tuned
    assert vit(["evaluate", f"--model={workdir}", f"--data=folder:{photos}", "--split=test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == rows(workdir)[-1]["test/accuracy"]


def theirs(model, images, transform):
    with torch.no_grad():
        return model(torch.stack([transform(Image.open(path)) for path in images])).numpy()


def test_timm_classifies_every_image_as_we_do(tuned, tmp_path, capsys):
    workdir, photos = tuned
    assert vit(["convert", f"--model={workdir}", f"--out={tmp_path / 'timm'}", "--to=timm"]) == 0
    assert re.search(r"OK: timm gives the same logits \(max difference [\d.]+e-0[5-9]\)", capsys.readouterr().out)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = sorted((photos / "test").rglob("*.png"))
    loaded = inference.load(workdir)
    ours = loaded(np.stack([loaded.preprocess(path) for path in images]))["logits"]
    np.testing.assert_allclose(theirs(model, images, transform), ours, atol=1e-4)
    assert list(model.pretrained_cfg["label_names"]) == ["day", "night"]


def test_transformers_classifies_every_image_as_we_do(tuned, tmp_path, capsys):
    workdir, _ = tuned
    assert vit(["convert", f"--model={workdir}", f"--out={tmp_path / 'hf'}", "--to=hf"]) == 0
    assert re.search(
        r"OK: transformers gives the same logits \(max difference [\d.]+e-0[5-9]\)", capsys.readouterr().out
    )
    model = transformers.AutoModelForImageClassification.from_pretrained(str(tmp_path / "hf")).eval()
    assert model.config.id2label == {0: "day", 1: "night"}


@pytest.mark.parametrize("to", ["npz", "timm", "hf", "workdir"])
def test_what_was_converted_is_a_model_reference_again(tuned, to, tmp_path, capsys):
    workdir, _ = tuned
    out = tmp_path / f"model.{to}"
    assert vit(["convert", f"--model={workdir}", f"--out={out}", f"--to={to}"]) == 0
    changes = {"mlp": "gelu"} if to == "npz" else {}  # which a .npz does not carry
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    model, again = inference.load(workdir), inference.load(out, changes=changes)
    if to == "npz":
        again = dataclasses.replace(again, task=dataclasses.replace(model.task, model=again.model))
    np.testing.assert_array_equal(model(image)["logits"], again(image)["logits"])
    assert again.class_names == (model.class_names if to != "npz" else ("0", "1"))
    assert again.preprocess_spec == model.preprocess_spec


def test_converting_never_overwrites(tuned, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert vit(["convert", f"--model={tuned[0]}", f"--out={tmp_path / 'there'}", "--to=timm"]) == 2
    assert "give a new path" in capsys.readouterr().err
