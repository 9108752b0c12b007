import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import inference
from vit_jax.cli import predict
from vit_jax.models.vit import ViT
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.mixing import Mixup
from vit_jax.tasks.regress import Regress
from vit_jax.train.fit import fit
from vit_jax.types import UserError

KEY = jax.random.key(0)
VIT = ViT(num_classes=2, width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=4)
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 1), np.uint8)),
    "label": jnp.asarray(RNG.normal(size=(6, 2)) * 5 + 100, jnp.float32),
}


def test_targets_are_scaled_and_predictions_are_in_their_own_units():
    task = Regress(VIT, target_mean=(100.0, 90.0), target_std=5.0)
    prepared = task.prepare(BATCH, KEY, {})
    np.testing.assert_allclose(
        prepared["target"], (BATCH["label"] - jnp.array([[100.0, 90.0]])) / 5, rtol=1e-4, atol=1e-4
    )
    # The head is zero at first, so that everything is predicted to be the mean.
    params = task.init(KEY, {"image": jax.ShapeDtypeStruct((8, 8, 1), "uint8")})
    out = task.predict({"params": params}, BATCH)
    np.testing.assert_allclose(out["values"], np.tile([100.0, 90.0], (6, 1)), rtol=1e-6)
    np.testing.assert_allclose(out["loss"], ((out["values"] - BATCH["label"]) ** 2).mean(axis=1), rtol=1e-5)


def test_numbers_are_mixed_as_their_images_are():
    task = Regress(VIT, mix=Mixup(alpha=1.0))
    prepared = task.prepare(BATCH, KEY, {})
    share = task.mix.weights(KEY, (6, 8, 8)).reshape(-1, 1)
    expected = share * BATCH["label"] + (1 - share) * jnp.roll(BATCH["label"], 1, axis=0)
    np.testing.assert_allclose(prepared["target"], expected, rtol=1e-5)


def test_one_class_each_is_no_target_of_regression_and_several_none_of_softmax():
    with pytest.raises(UserError, match=r"table\.Table"):
        Regress(VIT).prepare(BATCH | {"label": jnp.zeros(6, jnp.int32)}, KEY, {})
    with pytest.raises(UserError, match="one label an image"):
        Classify(VIT).prepare(BATCH, KEY, {})
    with pytest.raises(UserError, match="target_mean"):
        Regress(VIT, target_mean=(1.0, 2.0, 3.0)).prepare(BATCH, KEY, {})


@pytest.fixture
def table(tmp_path, tiny):
    """The digits as files with numbers: whether each is even, and whether it is above four."""
    from PIL import Image

    from vit_jax.data.sources.digits import Digits

    digits = Digits("test")
    lines = ["file,even,big"]
    for i in range(40):
        Image.fromarray(digits[i]["image"][:, :, 0]).save(tmp_path / f"{i}.png")
        label = digits[i]["label"]
        lines.append(f"{i}.png,{1 - label % 2},{int(label > 4)}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    source = {"type": "table.Table", "path": str(tmp_path / "table.csv"), "channels": 1}
    tiny.data.source, tiny.evals = source, {}
    tiny.steps = 30
    return tiny


def test_numbers_are_no_labels_and_a_classifier_gives_no_numbers(table, tmp_path):
    table.task = {"type": "classify.Classify", "loss_name": "bce"}
    table.evals = {"test": {"type": "regression.Regression", "source": table.data.source, "preprocess": ""}}
    with pytest.raises(UserError, match=r"evals\.test needs values, .*gives .*logits"):
        fit(table, tmp_path / "run")
    path = tmp_path / "table.csv"
    path.write_text(path.read_text().replace("3.png,0,0", "3.png,31,0"))
    table.evals = {}
    with pytest.raises(UserError, match=r"3\.png has the numbers \[31\.0, 0\.0\]\), expected 0 or 1"):
        fit(table, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "task", [{"type": "regress.Regress"}, {"type": "classify.Classify", "loss_name": "bce", "mix": {"type": "CutMix"}}]
)
def test_a_table_of_numbers_is_learned(task, table, tmp_path, capsys):
    table.task = task
    metrics = fit(table, tmp_path / "run")
    rows = [
        float(line.split('"loss": ')[1].split(",")[0])
        for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert metrics["loss"] < rows[0]
    loaded = inference.load(tmp_path / "run")
    assert loaded.class_names == ("even", "big")
    assert loaded(np.zeros((3, 8, 8, 1), np.uint8))["logits"].shape == (3, 2)
    capsys.readouterr()
    predict.main([f"--model={tmp_path / 'run'}", str(tmp_path / "3.png"), "--json"])
    told = json.loads(capsys.readouterr().out)
    names = told["values"] if task["type"] == "regress.Regress" else [item["label"] for item in told["top"]]
    assert set(names) == {"even", "big"}
