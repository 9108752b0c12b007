"""What the README tells its readers to do, done."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, TINY_FLAGS, environment, rows, run
from vit_jax import inference
from vit_jax.__main__ import main as vit
from vit_jax.data.open import open_source
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.digits import Digits
from vit_jax.train.fit import fit
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run(workdir, "--config.steps=40")
    return workdir


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """Test digits of the classes 3 and 7 as a folder of classes."""
    folder, source = tmp_path_factory.mktemp("digits"), Digits("test")
    for i in range(60):
        image, label = source[i]["image"], source[i]["label"]
        if label in (3, 7):
            (folder / str(label)).mkdir(exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / str(label) / f"{i}.png")
    return folder


def test_evaluating_a_saved_model_gives_what_training_logged(trained, capsys):
    assert vit(["evaluate", f"--model={trained}", "--data=digits", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    logged = rows(trained)[-1]
    assert {key: result[key] for key in ("accuracy", "loss", "num_examples")} == {
        key: logged[f"test/{key}"] for key in ("accuracy", "loss", "num_examples")
    }


def test_several_evaluators_measure_a_model_at_once(trained, capsys):
    flags = ["--evaluator=classification,knn,fewshot", "--evaluator.k=5", "--evaluator.shots=(1, 5)", "--per_class"]
    assert vit(["evaluate", f"--model={trained}", "--data=digits", "--json", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["classification"]["accuracy"] == rows(trained)[-1]["test/accuracy"]
    assert result["knn"]["accuracy"] > 0.5
    assert set(result["fewshot"]) == {"shot1", "shot5", "num_examples"}
    assert sum(count for _, count in result["per_class"].values()) == 360
    assert vit(["evaluate", f"--model={trained}", "--data=digits", "--evaluator=knn", "--batch_size=360"]) == 0
    assert capsys.readouterr().out.startswith("accuracy ")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--evaluator=nearest"], "--evaluator='nearest' is unknown"),
        (["--evaluator=knn", "--evaluator.neighbours=3"], "--evaluator.neighbours: unknown key"),
        (["--evaluator=fewshot", "--evaluator.k=3"], "--evaluator.k: unknown key; it is one of --evaluator=knn"),
        (
            ["--evaluator=knn", "--evaluator.batch_size=3"],
            "--evaluator.batch_size follows from --batch_size",
        ),
        (["--evaluator=knn", "--evaluator.k=many"], "--evaluator.k is 'many'; expected int"),
        (["--evaluator=imagenet"], "--evaluator lacks variant"),
        (["--evaluator=regression"], "Found classes"),
    ],
)
def test_evaluate_tells_what_is_wrong_with_its_evaluator(trained, flags, says, capsys):
    assert vit(["evaluate", f"--model={trained}", "--data=digits", *flags]) == 2
    assert says in capsys.readouterr().err


def test_features_are_measured_in_training_too(tiny, tmp_path):
    digits = {
        "source": {"type": "digits.Digits", "split": "test"},
        "train": {"type": "digits.Digits"},
        "preprocess": "",
    }
    tiny.steps = 2
    tiny.evals.knn = {"type": "knn.Knn", **digits}
    tiny.evals.fewshot = {"type": "fewshot.FewShot", **digits, "shots": (1, 5)}
    metrics = fit(tiny, tmp_path / "run")
    assert {"knn/accuracy", "fewshot/shot1", "fewshot/shot5", "test/ece", "test/accuracy_top5"} <= metrics.keys()


def test_evaluation_matches_classes_by_name_and_accepts_some_of_them(trained, digit_files, capsys):
    assert vit(["evaluate", f"--model={trained}", f"--data=folder:{digit_files}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    loaded = inference.load(trained)
    files = sorted(digit_files.rglob("*.png"))
    guesses = loaded(np.stack([loaded.preprocess(file) for file in files]))["logits"].argmax(axis=1)
    right = [loaded.class_names[guess] == file.parent.name for guess, file in zip(guesses, files, strict=True)]
    assert (result["num_examples"], result["accuracy"]) == (len(files), np.mean(right))


def test_one_class_of_the_model_is_enough_to_evaluate(trained, digit_files, tmp_path, capsys):
    (tmp_path / "7").symlink_to(digit_files / "7")
    assert vit(["evaluate", f"--model={trained}", f"--data=folder:{tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == len(list((digit_files / "7").iterdir()))


def test_the_folder_of_the_training_is_evaluated_on_its_holdout(digit_files):
    trained_on = {"type": "folder.Folder", "path": str(digit_files), "holdout": 0.4}
    held_out = open_source(f"folder:{digit_files}", channels=1, trained_on=trained_on)
    count = {name: len(list((digit_files / name).iterdir())) for name in ("3", "7")}
    assert len(held_out) == sum(round(0.4 * n) for n in count.values())
    assert len(open_source(f"folder:{digit_files}", channels=1)) == sum(count.values())


def test_predict_prints_a_line_an_image_and_tells_of_unreadable_ones(trained, digit_files, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert vit(["predict", f"--model={trained}", str(digit_files), str(tmp_path), "--json", "--top=3"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["path"] for line in lines] == sorted(map(str, digit_files.rglob("*.png")))
    for line in lines:
        probs = [item["prob"] for item in line["top"]]
        assert len(probs) == 3
        assert probs == sorted(probs, reverse=True)
    assert f"{tmp_path / 'bad.png'}: " in captured.err


def test_load_takes_paths_pictures_and_arrays_alike(trained, digit_files):
    loaded = inference.load(trained)
    file = next(digit_files.rglob("*.png"))
    picture = Image.open(file)
    images = [
        loaded.preprocess(x) for x in (file, str(file), picture, np.asarray(picture), np.asarray(picture)[..., None])
    ]
    assert all((image == images[0]).all() for image in images)
    outputs = loaded(np.stack(images[:2]))
    assert {key: value.shape for key, value in outputs.items()} == {
        "logits": (2, 10),
        "probs": (2, 10),
        "features": (2, 16),
    }
    np.testing.assert_allclose(outputs["probs"].sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="takes uint8 images"):
        loaded.predict({"image": np.stack(images[:2]) / 255})
    with pytest.raises(UnreadableImage):
        loaded.preprocess(file.parent / "missing.png")


def test_a_size_alone_is_a_model_with_random_weights():
    loaded = inference.load("mu/16")
    assert loaded.image_shape == (224, 224, 3)
    assert loaded(np.zeros((1, 224, 224, 3), np.uint8))["logits"].shape == (1, 1000)


def test_commands_tell_how_they_are_used(capsys):
    assert vit([]) == 0
    out = capsys.readouterr().out
    for command in ("bench", "evaluate", "predict"):
        assert command in out
        with pytest.raises(SystemExit) as stop:
            vit([command, "--help"])
        assert stop.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_readme_commands_are_real(tmp_path):
    """Every training, evaluate and predict command of the README parses, and names files and keys that exist."""
    readme = (ROOT / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", readme, flags=re.DOTALL)).replace("\\\n", " ")
    commands = [
        line.partition(" #")[0] for line in blocks.splitlines() if line.startswith(("python -m vit_jax", "vit "))
    ]
    assert len(commands) >= 4
    from vit_jax.cli.train import parse
    from vit_jax.config.load import load

    for command in commands:
        words = shlex.split(command)
        if words[:2] == ["vit", "train"] or words[:3] == ["python", "-m", "vit_jax.main"]:
            config, _, overrides = parse(words[2 if words[0] == "vit" else 3 :])
            load(str(ROOT / config), overrides)
        else:
            name = words[1] if words[0] == "vit" else words[3]
            assert (ROOT / "vit_jax" / "cli" / f"{name}.py").exists(), command


def test_interpreter_starts_the_commands(trained, digit_files):
    for command in (["-m", "vit_jax", "predict", f"--model={trained}", str(digit_files)], ["-m", "vit_jax", "--help"]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_flags_may_have_a_space_for_the_equals_sign(tmp_path):
    command = [sys.executable, "-m", "vit_jax.main", *TINY_FLAGS[1:], "--config", TINY_FLAGS[0].partition("=")[2]]
    command += ["--workdir", str(tmp_path / "run"), "--config.steps", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 2
