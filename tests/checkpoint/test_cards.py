"""Exports can be handed on: small default models to timm, right names and modes, a model card, and the hub."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, rows, sampled
from tests.hub_server import serving
from tests.peers import timm, torch
from vit_jax import inference
from vit_jax.__main__ import main as vit
from vit_jax.config import load as config_file
from vit_jax.models.vit import ViT
from vit_jax.pretrained import hub
from vit_jax.pretrained import timm as ours
from vit_jax.train.fit import fit

SHALLOW = [("steps", "2"), ("batch_size", "4"), ("model.depth", "1"), ("model.width", "16"), ("model.mlp_dim", "32")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of two classes in train and test folders."""
    place, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (place / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(place / split / name / f"{i}.png")
    return place


def train(name, folder, workdir):
    config = f"{ROOT / 'configs' / name}.py" + {"digits": "", "cifar10": f":folder:{folder}"}.get(
        name, f":data=folder:{folder}"
    )
    fit(config_file.load(config, SHALLOW), workdir)
    return workdir


@pytest.fixture(scope="module")
def digits(folder, tmp_path_factory):
    return train("digits", folder, tmp_path_factory.mktemp("digits") / "run")


@pytest.mark.parametrize("name", sampled(["digits", "cifar10", "small_data", "scratch"], "digits", "scratch"))
def test_the_default_networks_are_timms_and_npz(name, folder, digits, tmp_path, capsys):
    workdir = digits if name == "digits" else train(name, folder, tmp_path / "run")
    for to in ("timm", "npz"):
        assert vit(["convert", f"--model={workdir}", f"--out={tmp_path / f'model.{to}'}", f"--to={to}"]) == 0, (
            capsys.readouterr()
        )


def test_timm_predicts_what_was_trained(digits, tmp_path):
    assert vit(["convert", f"--model={digits}", f"--out={tmp_path / 'model'}", "--to=timm"]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    loaded = inference.load(digits)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *loaded.image_shape), np.uint8)
    with torch.no_grad():
        theirs = model(torch.from_numpy((pixels / 255.0 - 0.5) / 0.5).float().permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(theirs, loaded(pixels)["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "name"),
    {
        "Ti/16": "tiny_patch16",
        "S/32": "small_patch32",
        "B/8": "base_patch8",
        "L/16": "large_patch16",
        "H/14": "huge_patch14",
        "mu/8": "tiny_patch16",
    }.items(),
)
def test_architectures_are_named_by_size(variant, name):
    model = ViT.from_variant(variant, num_classes=2)
    fields = {
        field: getattr(model, field)
        for field in ("width", "depth", "mlp_dim", "num_heads", "patch_size", "num_classes")
    }
    found = ours._vit_architecture(ours.specs.complete({"type": "vit.ViT", **fields}, "timm"))
    assert found == f"vit_{name}_224"


def test_every_architecture_named_is_timms():
    names = {f"vit_{size}_patch{patch}_224" for size, patches in ours._PATCHES.items() for patch in patches}
    assert names <= set(timm.list_models("vit_*"))


def test_the_files_are_readable_by_all(digits, tmp_path):
    assert vit(["convert", f"--model={digits}", f"--out={tmp_path / 'model'}", "--to=timm"]) == 0
    (tmp_path / "plain").write_text("")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert set(modes) == {"config.json", "model.safetensors", "README.md"}
    assert set(modes.values()) == {(tmp_path / "plain").stat().st_mode & 0o777}


def test_the_card_has_results_recipe_and_what_to_fill_in(digits, tmp_path):
    assert vit(["convert", f"--model={digits}", f"--out={tmp_path / 'model'}", "--to=timm"]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert f"| test/accuracy | {100 * rows(digits)[-1]['test/accuracy']:.2f} % |" in card
    for text in ("1,437", "digits.Digits", "steps: `2`", "fill in", "timm.create_model", "vit_jax `"):
        assert text in card, text


def test_a_pushed_model_is_loaded_from_the_hub_again(digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "uploads").mkdir()
    with serving({}, tmp_path / "uploads") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        command = ["convert", f"--model={digits}", f"--out={tmp_path / 'model'}", "--to=timm", "--push=me/digits"]
        monkeypatch.delenv("HF_TOKEN", raising=False)
        assert vit(command) == 2
        assert "hf auth login" in capsys.readouterr().err
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        command[2] = f"--out={tmp_path / 'again'}"
        assert vit(command) == 0
        assert f"{server.address}/me/digits" in capsys.readouterr().out
        assert server.visibility["me/digits"] == "private"
        again = inference.load("hf:me/digits")
    image = np.zeros((1, *again.image_shape), np.uint8)
    np.testing.assert_allclose(again(image)["logits"], inference.load(digits)(image)["logits"], atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "../x", "a/b/c", ""])
def test_a_name_that_is_not_the_hubs_is_refused_before_anything(name, digits, tmp_path, capsys):
    assert vit(["convert", f"--model={digits}", f"--out={tmp_path / 'model'}", "--to=timm", f"--push={name}"]) == 2
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "variant"), {"augreg/Ti_16": "Ti/16", "augreg/R_Ti_16": "R+Ti/16", "imagenet21k/ViT-B_32": "B/32"}.items()
)
def test_parameters_of_listed_models_are_those_of_their_networks(name, variant):
    model = ViT.from_variant(variant, num_classes=1000)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == hub.find(name).parameters


def test_every_listed_model_has_its_parameters(capsys):
    for model in hub.ORIGINAL.values():
        assert model.parameters > 5e6, model.name
    assert hub.find("augreg/B_16").parameters == 86_567_656
    assert vit(["models"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + len(hub.ORIGINAL)
    assert any(re.search(r"86\.6 M   384   85\.49 %", line) for line in out)
    assert vit(["models", "B_16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["parameters"] == 86_567_656
