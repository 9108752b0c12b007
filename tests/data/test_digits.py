import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit_jax.data.sources.digits import Digits
from vit_jax.types import UserError


@pytest.mark.parametrize(("split", "part"), [("train", 0), ("test", 1)])
def test_split_is_that_of_scikit_learn(split, part):
    digits = load_digits()
    images = train_test_split(digits.images, test_size=360, stratify=digits.target, random_state=0)[part]
    labels = train_test_split(digits.target, test_size=360, stratify=digits.target, random_state=0)[part]
    source = Digits(split)
    assert len(source) == len(images) == (1437, 360)[part]
    assert source.class_names == tuple("0123456789")
    np.testing.assert_array_equal([source[i]["label"] for i in range(len(source))], labels)
    pixels = np.stack([source[i]["image"] for i in range(len(source))])
    assert (pixels.shape[1:], pixels.dtype) == ((8, 8, 1), np.uint8)
    np.testing.assert_allclose(pixels[..., 0] * (16 / 255), images, atol=0.5 * 16 / 255)


def test_unknown_split_is_an_error():
    with pytest.raises(UserError, match=r"split='val'.*'train' or 'test'"):
        Digits("val")
