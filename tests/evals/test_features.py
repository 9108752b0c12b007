"""Evaluators that learn from features, on features that are the pixels."""

import numpy as np
import pytest

from tests.evals.fake import evaluate
from vit_jax.data.sources.digits import Digits
from vit_jax.data.sources.fake import Fake
from vit_jax.evals.fewshot import FewShot, least_squares, whitened
from vit_jax.evals.knn import Knn, normalized, votes
from vit_jax.evals.probe import LinearProbe
from vit_jax.types import UserError

RNG = np.random.default_rng(0)


def pixels(batch):
    assert "label" not in batch  # the model may not know the classes
    images = batch["image"].astype(np.float32)
    return {"features": images.reshape(len(images), -1)}


def arrays(split):
    source = Digits(split)
    indices = range(len(source))
    x = np.stack([source[i]["image"] for i in indices]).reshape(len(source), -1).astype(np.float64)
    return x, np.array([source[i]["label"] for i in indices])


DATA = {"source": Digits("test"), "train": Digits("train"), "preprocess": ""}


def test_votes_equal_those_of_scikit_learn(agrees):
    import sklearn
    from sklearn.neighbors import KNeighborsClassifier

    train, test, labels = RNG.normal(size=(80, 6)), RNG.normal(size=(30, 6)), RNG.integers(0, 4, 80)
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine").fit(train, labels)
    ours = votes(normalized(test), normalized(train), labels, 4, k=20, temperature=0.07)
    expected = theirs.predict_proba(test)
    agrees("kNN: votes", f"scikit-learn {sklearn.__version__}", ours / ours.sum(axis=1, keepdims=True), expected, 1e-9)


@pytest.mark.parametrize("batch_size", [64, 360])
def test_knn_finds_the_digits_of_scikit_learn(batch_size, agrees):
    import sklearn
    from sklearn.neighbors import KNeighborsClassifier

    (x, y), (x_test, y_test) = arrays("train"), arrays("test")
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine").fit(x, y)
    ours = evaluate(Knn(**DATA, batch_size=batch_size), pixels)
    agrees(
        "kNN: accuracy", f"scikit-learn {sklearn.__version__}", ours["accuracy"], theirs.score(x_test, y_test), 1e-12
    )
    assert ours["accuracy"] > 0.95
    assert ours["num_examples"] == 360


@pytest.mark.parametrize("n", [12, 60])
def test_least_squares_equals_ridge_regression(n, agrees):
    import sklearn
    from sklearn.linear_model import Ridge

    x, y, test = RNG.normal(size=(n, 20)) * 3 + 1, RNG.integers(0, 4, n), RNG.normal(size=(9, 20))
    for l2 in (1024.0, 1.0):
        theirs = Ridge(alpha=l2, fit_intercept=False).fit(whitened(x, x), 2.0 * np.eye(4)[y] - 1)
        ours = whitened(test, x) @ least_squares(whitened(x, x), y, 4, l2)
        agrees(
            "few-shot: least squares",
            f"scikit-learn {sklearn.__version__} Ridge",
            ours,
            theirs.predict(whitened(test, x)),
            1e-6,
        )


def test_more_shots_are_better_and_draws_repeat():
    fewshot = FewShot(**DATA, shots=(1, 5, 25), l2=1024.0)
    result = evaluate(fewshot, pixels)
    assert result["shot1"] < result["shot5"] < result["shot25"]
    assert result["shot25"] > 0.85
    assert evaluate(fewshot, pixels) == result


def test_the_probe_equals_logistic_regression_of_the_strength_it_chose(agrees):
    import sklearn
    from sklearn.linear_model import LogisticRegression

    result = evaluate(LinearProbe(**DATA, strengths=(1e-3, 1e-1)), pixels)
    assert result["C"] in (1e-3, 1e-1)
    (x, y), (x_test, y_test) = arrays("train"), arrays("test")
    mean, std = x.mean(axis=0), np.where(x.std(axis=0) == 0, 1, x.std(axis=0))
    expected = (
        LogisticRegression(C=result["C"], max_iter=1000).fit((x - mean) / std, y).score((x_test - mean) / std, y_test)
    )
    agrees("linear probe: accuracy", f"scikit-learn {sklearn.__version__}", result["accuracy"], expected, 0.003)
    assert result["accuracy"] > 0.95


def test_the_probe_learns_a_class_of_one_image(agrees):
    (x, y), (x_test, y_test) = arrays("train"), arrays("test")
    kept = np.concatenate([np.flatnonzero(y != 3), np.flatnonzero(y == 3)[:1]])
    passes = {"train": {"features": x[kept], "label": y[kept]}, "test": {"features": x_test, "label": y_test}}
    found = LinearProbe(**DATA, strengths=(1e-3, 1e-1)).result(passes)
    assert 0.8 < found["accuracy"] < 0.95  # most images of the class are taken for others


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Knn(**DATA, k=0), "1 to 1437 neighbours"),
        (lambda: Knn(**DATA, temperature=0.0), "temperature above 0"),
        (lambda: Knn(Fake(num_classes=3), Fake(num_classes=4), ""), "4 classes such as .* those to evaluate 3"),
        (lambda: FewShot(**DATA, shots=()), r"shots=\(\)"),
        (lambda: FewShot(**DATA, shots=(1, 500)), "ask for fewer"),
        (lambda: LinearProbe(**DATA, strengths=(0.0,)), "strengths"),
        (lambda: LinearProbe(Fake(num_classes=1), Fake(num_classes=1), ""), "tells classes apart"),
    ],
)
def test_what_cannot_be_measured_is_told(make, says):
    with pytest.raises(UserError, match=says):
        make()
