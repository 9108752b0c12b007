import logging

import numpy as np
import pytest

from vit_jax.data.sources.digits import Digits
from vit_jax.evals.collapse import Collapse, effective_rank, spread

RNG = np.random.default_rng(0)


def measured(features):
    return Collapse(Digits("test"), "resize(8)").result({"": {"features": features.astype(np.float32)}})


def test_the_rank_is_that_of_rankme(agrees):
    features = RNG.normal(size=(50, 8)) * np.arange(1, 9)
    singular = np.linalg.svd(features, compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    agrees(
        "RankMe", "numpy's singular values", effective_rank(features), np.exp(-(shares * np.log(shares)).sum()), 1e-6
    )


@pytest.mark.parametrize(("directions", "low", "high"), [(1, 1.0, 1.01), (2, 1.5, 2.01), (16, 14, 16.01)])
def test_the_rank_counts_directions(directions, low, high):
    features = RNG.normal(size=(400, directions)) @ np.linalg.qr(RNG.normal(size=(16, directions)))[0].T
    assert low <= effective_rank(features) <= high


def test_the_spread_is_one_for_all_directions_and_zero_for_one():
    assert spread(RNG.normal(size=(4000, 16))) == pytest.approx(1, abs=0.02)
    assert spread(np.tile(RNG.normal(size=(1, 16)), (10, 1))) == pytest.approx(0, abs=1e-7)


def test_collapsed_features_are_warned_of_and_others_are_not(caplog):
    with caplog.at_level(logging.WARNING):
        measured(RNG.normal(size=(64, 16)))
        assert not caplog.records
        found = measured(np.ones((64, 16)) + 1e-3 * RNG.normal(size=(64, 16)))
    assert "collapse" in caplog.text
    assert found["rank"] < 3
    assert found["num_examples"] == 64
