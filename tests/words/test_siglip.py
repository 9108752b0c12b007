"""Pairs, tokenizer, towers and the sigmoid loss from files to a run that resumes."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.conftest import ROOT, environment
from tests.peers import torch
from tests.words import toy
from vit_jax.__main__ import dispatch
from vit_jax.cli.command import run_cli
from vit_jax.tasks.siglip import sigmoid_loss
from vit_jax.train.fit import fit
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def trained(place):
    """A finished run."""
    fit(toy.config(place), place / "run")
    return place / "run"


def test_a_trained_model_carries_its_tokenizer(place, trained):
    loaded = vit_jax.load(trained)
    embedding = loaded.embed_texts(["a red square", "square of red", "a red square"])
    assert embedding.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(embedding[0], embedding[2])
    images = loaded(place / "red_square_0.png")["image_embedding"]
    probs = loaded.match(images, embedding)
    assert probs.shape == (1, 3)
    assert ((probs > 0) & (probs < 1)).all()


def test_an_index_of_embeddings_is_asked_with_texts(place, trained, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("red_square_0.png", "blue_bar_0.png", "green_column_0.png"):
        shutil.copy(place / name, folder)
    loaded, index = vit_jax.load(trained), f"--index={tmp_path / 'index'}"
    flags = ["search", "build", str(folder), f"--model={trained}", index]
    assert run_cli(dispatch, [*flags, "--feature=image_embedding"]) == 0
    capsys.readouterr()
    assert run_cli(dispatch, ["search", "query", "--text=a red bar", "--json", index]) == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    cosines = {item["path"]: item["cosine"] for item in answer["found"]}
    assert answer["query"] == "a red bar"
    (text,) = loaded.embed_texts(["a red bar"])
    for path, cosine in cosines.items():
        assert cosine == pytest.approx(float(loaded(path)["image_embedding"][0] @ text), abs=1e-5)
    assert list(cosines.values()) == sorted(cosines.values(), reverse=True)
    assert run_cli(dispatch, [*flags[:-1], f"--index={tmp_path / 'other'}"]) == 0
    assert run_cli(dispatch, ["search", "query", "--text=a red bar", f"--index={tmp_path / 'other'}"]) == 2
    assert "--feature=image_embedding" in capsys.readouterr().err


def test_another_tokenizer_does_not_resume_a_run(place, trained):
    config = toy.config(place)
    toy.write_tokenizer(place, 280)
    try:
        with pytest.raises(UserError, match=r"vocab_size|other data"):
            fit(config, trained)
    finally:
        toy.write_tokenizer(place)


def towers(b=16, d=8, seed=0):
    rng = np.random.default_rng(seed)
    image, text = (rng.normal(size=(b, d)).astype(np.float32) for _ in range(2))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return *unit, np.arange(b)[:, None] * np.ones((1, 3), np.int32)


def of_siglip(image, text, scale, bias):
    """The loss as transformers' SiglipModel computes it (modeling_siglip.py, forward)."""
    logits = text @ image.T * scale + bias
    eye = torch.eye(len(logits))
    return -torch.nn.functional.logsigmoid((2 * eye - 1) * logits).sum(dim=-1).mean()


@pytest.mark.parametrize("chunk", [4096, 4])
def test_the_sigmoid_loss_and_its_gradient_are_those_of_transformers(chunk, agrees):
    image, text, ids = towers()
    ids = jnp.asarray(ids, jnp.int32)
    found, grads = jax.value_and_grad(sigmoid_loss, (0, 1, 3, 4))(
        jnp.asarray(image), jnp.asarray(text), ids, jnp.float32(10.0), jnp.float32(-10.0), chunk
    )
    leaves = [torch.tensor(x, requires_grad=True) for x in (image, text, np.float32(10.0), np.float32(-10.0))]
    theirs = of_siglip(*leaves)
    theirs.backward()
    agrees("SigLIP's loss", "transformers' formula in torch", found, theirs.detach(), 1e-5)
    for ours, leaf in zip(grads, leaves, strict=True):
        agrees("SigLIP's gradient", "transformers' formula in torch", ours, leaf.grad, 1e-5)


def test_equal_captions_are_no_negatives():
    image, text, ids = towers(6)
    ids[3] = ids[0]
    scale, bias = jnp.float32(10.0), jnp.float32(-1.0)
    found = sigmoid_loss(jnp.asarray(image), jnp.asarray(text), jnp.asarray(ids, jnp.int32), scale, bias, 64)
    logits = 10.0 * image @ text.T - 1.0
    signs = 2 * np.eye(6) - 1
    terms = np.log1p(np.exp(-signs * logits))
    terms[0, 3] = terms[3, 0] = 0.0
    np.testing.assert_allclose(found, terms.sum() / 6, rtol=1e-5)


@pytest.fixture(scope="module")
def on_devices():
    """The loss and its gradients on 1 and on 8 devices."""
    command = [sys.executable, "-m", "tests.words.devices"]
    done = subprocess.run(command, cwd=ROOT, env=environment(8), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_eight_devices_give_the_loss_and_gradients_of_one(on_devices, mesh, agrees):
    agrees("SigLIP's loss and gradients on 8 devices", "the same on one", on_devices[mesh], on_devices["one"], 1e-5)


def test_the_whole_matrix_never_exists():
    """The compiled gradient of 4,096 pairs in chunks of 256 needs less memory than one matrix of the products."""
    image, text, ids = towers(4096)
    arguments = (jnp.asarray(image), jnp.asarray(text), jnp.asarray(ids, jnp.int32), jnp.float32(10), jnp.float32(-10))

    def memory(chunk):
        gradient = jax.jit(jax.grad(lambda *a: sigmoid_loss(*a, chunk), (0, 1)))
        return gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert memory(256) < 4096 * 4096 * 4 / 2 < memory(4096)


def test_towers_of_different_widths_are_refused(place, tmp_path):
    config = toy.config(place)
    config.task.text.out_dim = 12
    with pytest.raises(UserError, match=r"vectors of 16 numbers, the text tower of 12.*task\.projection=12"):
        fit(config, tmp_path / "run")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(place, tmp_path):
    config = toy.config(place)
    config.task.text.vocab_size = 100
    with pytest.raises(UserError, match=r"task\.text\.vocab_size=100; expected at least as many"):
        fit(config, tmp_path / "run")


def test_captions_without_a_tokenizer_are_refused(place, tmp_path):
    config = toy.config(place)
    config.data.preprocess, config.task.text.vocab_size, config.task.text.length = "", 100, 8
    with pytest.raises(UserError, match=r"end data\.preprocess in tokenize"):
        fit(config, tmp_path / "run")


def test_a_batch_without_negatives_is_refused(place, tmp_path):
    config = toy.config(place)
    config.batch_size = 1
    with pytest.raises(UserError, match="batch_size of at least 2"):
        fit(config, tmp_path / "run")


def test_predict_compares_images_with_texts(place, trained, capsys):
    photo = place / "red_square_0.png"
    command = ["predict", f"--model={trained}", "--json", "--texts", "a red square", "a blue bar", str(photo)]
    assert run_cli(dispatch, command) == 0
    top = json.loads(capsys.readouterr().out)["top"]
    assert {entry["label"] for entry in top} == {"a red square", "a blue bar"}
    loaded = vit_jax.load(trained)
    probs = loaded.match(loaded(photo)["image_embedding"], loaded.embed_texts(["a red square", "a blue bar"]))[0]
    np.testing.assert_allclose(sorted(entry["prob"] for entry in top), sorted(probs), rtol=1e-4)


def test_predict_without_files_or_texts_says_so(trained, capsys):
    assert run_cli(dispatch, ["predict", f"--model={trained}", "--texts", "no such file"]) == 2
    assert "Give image files or folders and texts" in capsys.readouterr().err


def test_evaluate_retrieves_by_default_and_classifies_by_names(place, trained, capsys):
    assert run_cli(dispatch, ["evaluate", f"--model={trained}", f"--data=pairs:{place / 'pairs.jsonl'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_images"] == 36
    assert found["num_texts"] == 18
    for colour in toy.COLOURS:
        folder = place / "classes" / colour
        folder.mkdir(parents=True)
        for file in place.glob(f"{colour}_*.png"):
            (folder / file.name).write_bytes(file.read_bytes())
    (place / "templates.txt").write_text("a {} square\nsquare of {}\n")
    command = ["evaluate", f"--model={trained}", f"--data=folder:{place / 'classes'}", "--json"]
    assert (
        run_cli(dispatch, [*command, "--evaluator=zeroshot", f"--evaluator.templates={place / 'templates.txt'}"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["num_examples"] == 36
    loaded = vit_jax.load(trained)
    texts = loaded.embed_texts([t.format(c) for c in sorted(toy.COLOURS) for t in ("a {} square", "square of {}")])
    classes = texts.reshape(3, 2, -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    files = [file for colour in sorted(toy.COLOURS) for file in sorted((place / "classes" / colour).iterdir())]
    near = loaded(files)["image_embedding"] @ classes.T
    assert found["accuracy"] == pytest.approx(np.mean(near.argmax(axis=1) == np.repeat(np.arange(3), 12)))
