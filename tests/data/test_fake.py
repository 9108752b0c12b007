import numpy as np
import pytest

from vit_jax.data.sources.fake import Fake
from vit_jax.types import UserError


def test_image_is_a_function_of_seed_and_index():
    first, again, other = (Fake(4, (6, 9), 2, num_classes=2, seed=s)[3]["image"] for s in (1, 1, 2))
    assert first.shape == (6, 9, 2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_images_of_a_class_are_closer_than_of_two_classes():
    source = Fake(8, 16, num_classes=2)
    images = [source[i]["image"].astype(float) for i in range(8)]
    distance = [[np.abs(a - b).mean() for b in images] for a in images]
    same = [distance[i][j] for i in range(8) for j in range(i) if source[i]["label"] == source[j]["label"]]
    different = [distance[i][j] for i in range(8) for j in range(i) if source[i]["label"] != source[j]["label"]]
    assert max(same) < min(different)


def test_empty_is_an_error():
    with pytest.raises(UserError, match="num_examples=0"):
        Fake(0)
