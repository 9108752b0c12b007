import numpy as np
import pytest

from tests.evals.fake import evaluate
from vit_jax.data.sources.fake import Fake
from vit_jax.evals.corruptions import Corruptions
from vit_jax.evals.corruptions.kinds import KINDS, corrupt
from vit_jax.evals.corruptions.weather import frost_pictures
from vit_jax.types import UserError

SOURCE = Fake(num_examples=7, image_size=8, num_classes=3)


def classify(batch):
    """The mean grey level decides, so that every corruption has an answer of its own."""
    grey = batch["image"].astype(float).mean(axis=(1, 2, 3))
    return {"logits": np.eye(3)[(7 * grey).astype(int) % 3]}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_each_image_is_corrupted_by_index_kind_and_severity_alone(batch_size):
    result = evaluate(
        Corruptions(SOURCE, "", ["fog", "gaussian_noise"], (2, 5), batch_size=batch_size, threads=1), classify
    )
    right = np.zeros((2, 2, 7))
    for row, (number, kind) in enumerate([(9, "fog"), (0, "gaussian_noise")]):
        for column, severity in enumerate((2, 5)):
            for i in range(7):
                image = corrupt(SOURCE[i]["image"], kind, severity, np.random.default_rng([i, number, severity]))
                right[row, column, i] = classify({"image": image[None]})["logits"].argmax() == SOURCE[i]["label"]
    assert 0 < right.mean() < 1
    assert result == pytest.approx(
        {
            "fog": right[0].mean(),
            "gaussian_noise": right[1].mean(),
            "severity2": right[:, 0].mean(),
            "severity5": right[:, 1].mean(),
            "mean_accuracy": right.mean(),
            "num_examples": 7,
        }
    )


def test_the_corruption_comes_after_the_preprocessing():
    shapes = []

    def predict(batch):
        shapes.append(batch["image"].shape)
        return {"logits": np.eye(3)[[0] * len(batch["label"])]}

    result = evaluate(Corruptions(SOURCE, "central_crop(4)", ["contrast"], (5,), batch_size=4, threads=1), predict)
    assert set(shapes) == {(4, 4, 4, 3)}
    assert result["num_examples"] == 7


def test_some_examples_are_measured():
    seen = []

    def predict(batch):
        seen.extend(batch["label"].tolist())
        return classify(batch)

    result = evaluate(Corruptions(SOURCE, "", ["contrast"], (1, 2), examples=4, batch_size=2), predict)
    assert result["num_examples"] == 4
    assert seen == [SOURCE[i]["label"] for i in (0, 1, 3, 5)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["snoww"]}, "did you mean snow"),
        ({"kinds": ["snow"], "severities": (0,)}, "severity 0"),
        ({"kinds": []}, "at least one of each"),
        ({"kinds": ["snow"], "examples": 0}, "at least one of each"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Corruptions(SOURCE, "", **arguments)


def test_without_its_photographs_frost_is_left_out_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    frost_pictures.cache_clear()
    evaluator = Corruptions(SOURCE, "", severities=(1,), batch_size=8, threads=1)
    (record,) = caplog.records
    assert "frost is left out, and mean_accuracy is of the 14 others" in record.getMessage()
    result = evaluate(evaluator, classify)
    assert set(KINDS) - set(result) == {"frost"}
    assert result["mean_accuracy"] == pytest.approx(np.mean([result[kind] for kind in KINDS if kind != "frost"]))
    with pytest.raises(UserError, match="photographs of frost are missing"):
        Corruptions(SOURCE, "", ["frost"], (1,))
