"""The server shows what models of pixels, boxes and texts predict: in its answers, and on its page in Chromium."""

import base64
import io
import os
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dense import made, test_detect
from tests.reports.browser import Browser
from tests.serve.test_serve import as_file, drop, needs_chromium, post, served, wait_for
from tests.words import toy
from vit_jax import inference
from vit_jax.serve.app import Limits, make_app
from vit_jax.serve.engine import Engine
from vit_jax.serve.openapi import description
from vit_jax.train.fit import fit
from vit_jax.viz.dense import overlay

pytestmark = pytest.mark.xdist_group("serve-pixels-and-texts")


def trained(kind, folder):
    """A run of a few steps, and a photograph for it."""
    if kind == "segment":
        config = made.config_of(made.write_folder(folder / "data", {"train": 8, "val": 2}))
        photo = made.image_of(made.scene(5), 5)
    elif kind == "detect":
        config = test_detect.config_of(test_detect.write_coco(folder / "data"))
        config.data.eval_preprocess = "resize((32, 40))"
        photo = np.full((32, 40, 3), 90, np.uint8)
    else:
        toy.write_pairs(folder)
        toy.write_tokenizer(folder)
        config = toy.config(folder)
        photo = np.asarray(Image.open(folder / "red_bar_0.png"))
    config.log.tensorboard = False
    fit(config, folder / "run")
    return inference.load(folder / "run"), photo


@pytest.fixture(scope="module", params=["segment", "detect", "texts"])
def case(request, tmp_path_factory):
    loaded, photo = trained(request.param, tmp_path_factory.mktemp(request.param))
    engine = Engine("model", loaded)
    engine.has_attention = False  # compiles faster
    with served(make_app(engine, Limits(), None, "model")) as port:
        yield request.param, loaded, photo, port


def picture(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_answers_have_what_is_predicted(case):
    kind, loaded, photo, port = case
    status, answer, _ = post(port, as_file(photo))
    assert status == 200
    assert answer.keys() <= description(False)["paths"]["/api/predict"]["post"]["responses"]["200"]["content"][
        "application/json"]["schema"]["properties"].keys()  # fmt: skip
    image = loaded.preprocess(Image.fromarray(photo))
    if kind == "segment":
        classes = np.asarray(loaded.predictor(loaded.weights, {"image": image[None]}, ["segments"])[1]["segments"])[0]
        assert {x["label"]: x["share"] for x in answer["segments"]} == {
            name: round(float((classes == i).mean()), 6) for i, name in enumerate(made.CLASSES) if (classes == i).any()
        }
        np.testing.assert_array_equal(picture(answer["overlay"]), overlay(image, classes))
    elif kind == "detect":
        outputs = loaded.predictor(loaded.weights, {"image": image[None]}, ["box_scores"])[1]
        assert len(answer["boxes"]) == (np.asarray(outputs["box_scores"])[0] >= 0.5).sum()
        assert picture(answer["overlay"]).shape == image.shape
    else:
        assert "texts" not in answer


def test_typed_labels_are_compared_as_predict_does(case):
    kind, loaded, photo, port = case
    query = "?" + urllib.parse.urlencode([("text", "a red bar"), ("text", " a blue bar "), ("text", "a red bar")])
    status, answer, _ = post(port, as_file(photo), query)
    if kind != "texts":
        assert (status, answer) == (400, {"error": "The model compares no texts."})
        return
    texts = ["a red bar", "a blue bar"]
    embedding = loaded(loaded.preprocess(Image.fromarray(photo))[None])["image_embedding"]
    expected = loaded.match(embedding, loaded.embed_texts(texts))[0]
    assert [x["label"] for x in answer["texts"]] == texts
    np.testing.assert_allclose([x["probability"] for x in answer["texts"]], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("texts", [["a cat"] * 2 + [f"a {i}" for i in range(32)], ["x" * 201]])
def test_too_many_or_long_labels_are_refused(case, texts):
    kind, _, photo, port = case
    if kind != "texts":
        pytest.skip("for models of texts")
    status, answer, _ = post(port, as_file(photo), "?" + urllib.parse.urlencode([("text", text) for text in texts]))
    assert status == 400
    assert "at most 32 texts of at most 200 letters" in answer["error"]


@needs_chromium
@pytest.mark.parametrize("width", [1100, 390])
def test_the_page_draws_them(case, width, tmp_path):
    kind, _, photo, port = case
    browser = Browser(tmp_path / "profile", width=width, height=900)
    try:
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for(browser, "document.getElementById('model').textContent")
        assert browser.run("document.getElementById('texts-line').hidden") == (kind != "texts")
        drop(browser, as_file(photo))
        wait_for(browser, "document.getElementById('status').textContent.startsWith('Done')")
        if kind == "texts":
            browser.run("document.getElementById('texts').value = 'a red bar, a <b>blue</b> bar'")
            browser.run("document.getElementById('texts').dispatchEvent(new Event('change'))")
            wait_for(browser, "document.querySelectorAll('#classes tr').length === 2")
            assert "a <b>blue</b> bar" in browser.run("document.getElementById('classes').innerText")
        else:
            assert browser.run("document.getElementById('overlay').naturalWidth > 0")
            assert not browser.run("document.getElementById('overlay-section').hidden")
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.errors == []
        if "VIT_JAX_PICTURES" in os.environ:
            browser.picture(Path(os.environ["VIT_JAX_PICTURES"], f"serve_{kind}_{width}.png"), whole=True)
    finally:
        browser.close()
