"""What random crops draw, against the draws of TensorFlow, torchvision and timm."""

import importlib
import random

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from tests import peers
from vit_jax.data.transforms.ops import inception_crop, random_resized_crop

torchvision_crop = importlib.import_module("torchvision.transforms").RandomResizedCrop
timm_crop = peers.timm.data.transforms.RandomResizedCropAndInterpolation
DRAWS = 12_000
# The share of 50,000 draws of tf.image.sample_distorted_bounding_box (TensorFlow 2.21, min_object_covered=0, seed 0) up to some
# values, by (height, width, area_min, area_max, ratio).
TENSORFLOW = {
    (375, 500, 0.05, 1.0, (0.75, 1.33)): {
        "area": {0.15: 0.256, 0.3: 0.500, 0.51: 0.752},
        "aspect": {0.9: 0.258, 1.04: 0.499, 1.18: 0.743},
        "left": {51: 0.254, 111: 0.502, 188: 0.750},
        "top": {18: 0.255, 51: 0.504, 106: 0.752},
    },
    (500, 333, 0.05, 1.0, (0.75, 1.33)): {
        "area": {0.14: 0.259, 0.26: 0.494, 0.43: 0.747},
        "aspect": {0.89: 0.247, 1.04: 0.504, 1.18: 0.743},
        "left": {16: 0.259, 44: 0.503, 91: 0.752},
        "top": {66: 0.253, 134: 0.502, 213: 0.753},
    },
    (100, 800, 0.05, 1.0, (0.75, 1.33)): {
        "area": {0.06: 0.174, 0.08: 0.463, 0.1: 0.709},
        "aspect": {0.9: 0.259, 1.04: 0.496, 1.19: 0.759},
        "left": {180: 0.250, 360: 0.501, 537: 0.750},
        "top": {2: 0.293, 6: 0.509, 14: 0.770},
    },
    (300, 80, 0.3, 0.5, (0.5, 2.0)): {
        "area": {0.31: 0.275, 0.33: 0.505, 0.37: 0.757},
        "aspect": {0.6: 0.254, 0.7: 0.508, 0.79: 0.738},
        "left": {0: 0.471, 1: 0.625, 3: 0.799},
        "top": {47: 0.256, 94: 0.503, 141: 0.752},
    },
}


def described(boxes, height, width):
    """Area, aspect and place of boxes (left, top, right, bottom)."""
    left, top, right, bottom = np.asarray(boxes, float).T
    columns, rows = right - left, bottom - top
    return {"area": columns * rows / (height * width), "aspect": columns / rows, "left": left, "top": top}


@pytest.mark.parametrize("case", TENSORFLOW, ids=str)
def test_an_inception_crop_is_drawn_as_tensorflow_does(case):
    height, width, *bounds = case
    op, rng = inception_crop(8, *bounds), np.random.default_rng(0)
    ours = described([op.draw(height, width, rng) for _ in range(DRAWS)], height, width)
    for name, shares in TENSORFLOW[case].items():
        for value, share in shares.items():
            # Four standard deviations of both samples.
            assert np.mean(ours[name] <= value + 1e-9) == pytest.approx(share, abs=0.022), (name, value)


def ks(ours, theirs):
    """The largest difference of two samples' distributions."""
    return scipy.stats.ks_2samp(ours, theirs, method="asymp").statistic


def theirs_of_torchvision(picture, area, ratio):
    top, left, rows, columns = torchvision_crop.get_params(picture, area, ratio)
    return left, top, left + columns, top + rows


def theirs_of_timm(picture, area, ratio):
    top, left, rows, columns = timm_crop.get_params(picture, area, ratio)
    return left, top, left + columns, top + rows


@pytest.mark.parametrize("theirs", [theirs_of_torchvision, theirs_of_timm])
@pytest.mark.parametrize(
    ("height", "width", "area", "ratio"),
    [
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (90, 400, (0.3, 1.0), (3 / 4, 4 / 3)),  # half of the draws fit nowhere
        (300, 80, (0.2, 0.5), (0.5, 2.0)),
    ],
)
def test_a_random_resized_crop_is_drawn_as_torchvision_and_timm_do(theirs, height, width, area, ratio):
    op, rng = random_resized_crop(8, *area, ratio), np.random.default_rng(0)
    peers.torch.manual_seed(0)
    random.seed(0)
    picture = Image.new("RGB", (width, height))
    ours = described([op.draw(height, width, rng) for _ in range(4000)], height, width)
    found = described([theirs(picture, area, ratio) for _ in range(4000)], height, width)
    for name in ours:
        assert ks(ours[name], found[name]) < 0.045, name  # the 0.05 % point


@pytest.mark.parametrize(("height", "width"), [(40, 400), (400, 40), (100, 100)])
def test_a_random_resized_crop_that_never_fits_is_the_middle_as_in_torchvision(height, width):
    # A square of the whole area fits into no other image, and its draw is just too large in one.
    area, ratio = (1.0, 1.0), (1.2, 1.4) if height == width else (1.0, 1.0)
    expected = theirs_of_torchvision(Image.new("L", (width, height)), area, ratio)
    assert random_resized_crop(8, *area, ratio).draw(height, width, np.random.default_rng(0)) == expected


def test_the_two_rules_differ():
    inception, resized = (
        described([op.draw(375, 500, np.random.default_rng(seed)) for seed in range(2000)], 375, 500)["area"]
        for op in (inception_crop(8), random_resized_crop(8, 0.05))
    )
    assert ks(inception, resized) == pytest.approx(0.15, abs=0.04)
