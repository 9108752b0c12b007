"""vit_jax as a library: names on first use, images of every kind, short reprs, size names."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vit_jax as vj
from tests.conftest import tiny_config
from vit_jax.data.source import UnreadableImage
from vit_jax.train.fit import fit
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = tiny_config()
    config.steps = 30
    workdir = tmp_path_factory.mktemp("library") / "run"
    fit(config, workdir)
    return vj.load(workdir)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_importing_the_library_imports_no_jax():
    code = "import sys, vit_jax; assert not {'jax', 'flax', 'numpy'} & set(sys.modules); from vit_jax import ViT, load"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_library_is_there():
    assert all(getattr(vj, name) is not None for name in vj.__all__)
    with pytest.raises(AttributeError, match="it has load"):
        vj.fiit  # noqa: B018


def test_paths_pictures_and_arrays_give_the_same(model, photo):
    path, pixels = photo
    batch = model(pixels[None, :, :, None])["logits"]
    for image in (path, str(path), Image.open(path), pixels, pixels[:, :, None], [path], (path,)):
        np.testing.assert_array_equal(model(image)["logits"], batch)


def test_many_paths_are_predicted_in_order(model, photo, monkeypatch):
    path, pixels = photo
    monkeypatch.setattr("vit_jax.inference.BATCH", 2)
    several = [path, 255 - pixels, Image.open(path), pixels, 255 - pixels]
    probs = model(several)["probs"]
    np.testing.assert_allclose(probs[0], probs[3], rtol=1e-5)
    np.testing.assert_allclose(probs[1], probs[4], rtol=1e-5)
    assert len(probs) == 5


def test_an_array_of_the_models_shape_is_left_as_it_is(model, monkeypatch):
    monkeypatch.setattr(type(model), "preprocess", lambda *_: pytest.fail("preprocessed"))
    model(np.zeros((8, 8, 1), np.uint8))


def test_top_names_the_most_probable_classes(model, photo):
    path, pixels = photo
    best = model.top(path, k=3)
    probs = model(path)["probs"][0]
    assert [name for name, _ in best] == [model.class_names[i] for i in np.argsort(-probs)[:3]]
    assert best[0][1] == float(probs.max())
    assert model.top([path, pixels], k=3) == [best, best]


def test_top_refuses_a_model_without_a_trained_head(photo):
    with pytest.raises(UserError, match="fine-tune"):
        vj.load("mu/16").top(np.zeros((224, 224, 3), np.uint8))


def test_a_missing_photograph_is_named(model):
    with pytest.raises(UnreadableImage, match=r"nowhere\.jpg"):
        model("nowhere.jpg")


def test_reprs_are_a_few_lines(model):
    text = repr(model)
    assert len(text.splitlines()) <= 5
    assert len(text) < 400
    assert "parameters" in text
    assert "8 x 8 x 1" in text


def test_a_size_name_makes_a_network():
    assert vj.ViT.from_variant("B/16", num_classes=10).width == 768
    assert vj.ViT.from_variant("Ti/16", num_classes=10, pool="gap").pool == "gap"
    assert vj.ViT.from_variant("R50+B/16", num_classes=10).stem.stages == (3, 4, 9)
    assert vj.Mixer.from_variant("S/16", num_classes=10).width == 512


@pytest.mark.parametrize("network", [vj.ViT, vj.Mixer])
def test_a_size_name_as_a_field_gets_the_remedy(network):
    with pytest.raises(UserError, match=r"from_variant\('Ti/16', num_classes=10\)"):
        network(variant="Ti/16")
