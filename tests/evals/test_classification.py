import numpy as np
import pytest

from tests.evals.fake import evaluate, measured
from vit_jax.data.sources.fake import Fake
from vit_jax.evals.classification import Classification, calibration_error, per_class

RNG = np.random.default_rng(0)


def by_grey(batch, num_classes=3):
    """The mean grey level decides, so that every image has an answer of its own."""
    grey = batch["image"].astype(float).mean(axis=(1, 2, 3))
    logits = np.eye(num_classes)[grey.astype(int) % num_classes]
    return {"logits": logits, "probs": (logits + 0.1) / 1.3, "loss": grey.astype(np.float32)}


@pytest.mark.parametrize("batch_size", range(1, 9))
def test_every_example_counts_once_whatever_the_batch(batch_size):
    source = Fake(num_examples=7, image_size=4, num_classes=3)
    seen = []

    def predict(batch):
        seen.append(len(batch["image"]))
        return by_grey(batch)

    result = evaluate(Classification(source, "", batch_size), predict)
    greys = [source[i]["image"].astype(float).mean() for i in range(7)]
    assert result["num_examples"] == 7
    assert result["accuracy"] == sum(int(g) % 3 == source[i]["label"] for i, g in enumerate(greys)) / 7
    assert result["loss"] == pytest.approx(np.mean(np.float32(greys)), rel=1e-6)
    assert set(seen) == {batch_size}  # one shape: compiled once
    assert result == evaluate(Classification(source, "", 7), by_grey)


def test_the_calibration_error_is_that_of_its_definition(agrees):
    confidence, correct = RNG.random(500).astype(np.float32), RNG.random(500) < 0.6
    confidence[:3] = 0.0, 1.0, 0.2
    expected = 0.0
    for low, high in ((i / 15, (i + 1) / 15) for i in range(15)):
        inside = (confidence > low) & (confidence <= high) | ((confidence == 0) & (low == 0))
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].astype(np.float64).mean())
    agrees("ECE, 15 bins", "the definition, bin by bin", calibration_error(confidence, correct), expected, 1e-9)


def test_a_classifier_as_sure_as_it_is_right_is_calibrated():
    confidence = np.full(1000, 0.75)
    correct = np.arange(1000) % 4 != 0
    assert calibration_error(confidence, correct) == pytest.approx(0)
    assert calibration_error(confidence, np.zeros(1000, bool)) == pytest.approx(0.75)


def test_the_five_largest_logits_count_for_top5(agrees):
    import sklearn
    from sklearn.metrics import top_k_accuracy_score

    source = Fake(num_examples=40, image_size=4, num_classes=10)
    logits = RNG.normal(size=(40, 10))

    def predict(batch):
        rows = [next(i for i in range(40) if np.array_equal(source[i]["image"], image)) for image in batch["image"]]
        return {"logits": logits[rows], "probs": np.full((len(rows), 10), 0.1), "loss": np.zeros(len(rows))}

    result = evaluate(Classification(source, "", 40), predict)
    labels = [source[i]["label"] for i in range(40)]
    expected = top_k_accuracy_score(labels, logits, k=5, labels=range(10))
    agrees("top-5 accuracy", f"scikit-learn {sklearn.__version__}", result["accuracy_top5"], expected, 1e-12)


def test_equal_logits_are_the_first_five_classes():
    source = Fake(num_examples=50, image_size=4, num_classes=10)

    def predict(batch):
        b = len(batch["image"])
        return {"logits": np.zeros((b, 10)), "probs": np.full((b, 10), 0.1), "loss": np.zeros(b)}

    labels = np.array([source[i]["label"] for i in range(50)])
    result = evaluate(Classification(source, "", 16), predict)
    assert result["accuracy"] == (labels == 0).mean()
    assert result["accuracy_top5"] == (labels < 5).mean()


def test_classes_are_counted_one_by_one():
    evaluator = Classification(Fake(num_examples=30, image_size=4, num_classes=3), "", 8)
    result, rows = measured(evaluator, by_grey)
    table = per_class(rows[""], evaluator.spec.class_names)
    assert [name for name, _, _ in table] == list(evaluator.spec.class_names)
    assert sum(count for _, _, count in table) == 30
    right = sum(accuracy * count for _, accuracy, count in table)
    assert right / 30 == pytest.approx(result["accuracy"])
