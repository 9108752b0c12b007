"""Scores of maps: areas by hand, and a map that says where the class is beats one that does not."""

import numpy as np
import pytest

from tests.explain.helpers import images, network
from vit_jax.explain.faithfulness import deletion_insertion, shuffle, spearman


def test_areas_are_those_of_the_trapezoidal_rule():
    """The output is the mean of a white image on black: a line from 1 to 0, and back as the (white) blurred image stays."""
    image = np.full((4, 4, 1), 255, np.uint8)
    found = deletion_insertion(lambda x: x.mean(axis=(1, 2, 3)) / 255, image, np.eye(4), np.zeros(1, np.uint8), steps=4)
    assert found == pytest.approx((0.5, 1.0))


def test_the_important_pixels_are_removed_first():
    image = np.zeros((4, 4, 1), np.uint8)
    image[0, 0] = 255
    importance = image[..., 0].astype(float)

    def output(x):
        return x[:, 0, 0, 0] / 255.0

    black = np.zeros(1, np.uint8)
    right = deletion_insertion(output, image, importance, black, steps=16)
    wrong = deletion_insertion(output, image, -importance, black, steps=16)
    assert right[0] == pytest.approx(0.5 / 16)
    assert wrong[0] == pytest.approx(1 - 0.5 / 16)
    assert right[1] > wrong[1]


def test_shuffled_weights_have_the_same_entries_in_another_order():
    net = network()
    found = shuffle(net.loaded.weights, 0)["params"]["head"]["kernel"]
    kernel = np.asarray(net.loaded.weights["params"]["head"]["kernel"])
    assert (found != kernel).any()
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(kernel, axis=None))


def test_spearman_is_scipys():
    from scipy.stats import spearmanr

    one, other = images(2)[..., 0].astype(float)
    assert spearman(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert spearman(one, np.ones_like(one)) == 0
