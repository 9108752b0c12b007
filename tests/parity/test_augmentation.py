"""Augmentation against torchvision, timm and big_vision; differences are shares of the 255 grey levels."""

import importlib
import random

import numpy as np
import pytest
from PIL import Image

from tests import peers
from vit_jax.data.transforms import levels, pixels, policies, subpolicies
from vit_jax.data.transforms.preprocess import parse

timm_augment = peers.timm.data.auto_augment
torchvision_functional = importlib.import_module("torchvision.transforms.v2.functional")
TIMM, TORCHVISION, BIG_VISION = "timm 1.0.31", "torchvision 0.28", "big_vision, re-derived in float32"
GREY = (128, 128, 128)
LEVEL = (1 + 1e-9) / 255


def image(height=40, width=33, channels=3, seed=0):
    """A smooth image that spans black to white in all channels but one."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 6, channels), np.uint8)
    picture = parse(f"resize(({height}, {width}), 'bicubic')").image(noise, np.random.default_rng(0)).copy()
    picture[:, :, 0] = picture[:, :, 0] // 2 + 40
    return picture


def applied(name, value, array, fill=GREY, method="NEAREST"):
    picture = pixels.apply(name, Image.fromarray(array), float(value), fill, Image.Resampling[method])
    return np.asarray(picture)


@pytest.fixture
def matches(agrees):
    """Compare two images with agrees()."""
    return lambda name, reference, ours, theirs, tolerance: agrees(
        f"op: {name}", reference, np.asarray(ours, np.float64) / 255, np.asarray(theirs, np.float64) / 255, tolerance
    )


FACTORS = (0.0, 0.1, 0.55, 1.0, 1.45, 1.9)


@pytest.mark.parametrize(
    ("name", "function", "values", "tolerance"),
    [
        ("AutoContrast", "autocontrast", (0,), LEVEL),
        ("Equalize", "equalize", (0,), 0),
        ("Invert", "invert", (0,), 0),
        ("Posterize", "posterize", (1, 4, 7, 8), 0),
        ("Solarize", "solarize", (0, 128, 255), 0),
        ("Brightness", "adjust_brightness", FACTORS, LEVEL),
        ("Contrast", "adjust_contrast", FACTORS, LEVEL),
        ("Color", "adjust_saturation", FACTORS, LEVEL),
        ("Sharpness", "adjust_sharpness", FACTORS, LEVEL),
    ],
)
def test_colours_equal_torchvisions(matches, name, function, values, tolerance):
    array = image()
    tensor = peers.torch.from_numpy(array).permute(2, 0, 1)
    for value in values:
        arguments = () if values == (0,) else (value,)
        theirs = getattr(torchvision_functional, function)(tensor, *arguments).permute(1, 2, 0).numpy()
        matches(name, TORCHVISION, applied(name, value, array), theirs, tolerance)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.003, 0.1, 0.5])
def test_hue_equals_torchvisions(matches, turn):
    theirs = torchvision_functional.adjust_hue(Image.fromarray(image()), turn)
    matches("Hue", TORCHVISION, applied("Hue", turn, image()), np.asarray(theirs), 0)


@pytest.mark.parametrize("method", ["NEAREST", "BILINEAR", "BICUBIC"])
@pytest.mark.parametrize(
    ("name", "function", "values"),
    [
        ("Rotate", timm_augment.rotate, (-30.0, 0.0, 7.5)),
        ("ShearX", timm_augment.shear_x, (-0.3, 0.11)),
        ("ShearY", timm_augment.shear_y, (-0.3, 0.11)),
        ("TranslateX", timm_augment.translate_x_abs, (-7.0, 3.4)),
        ("TranslateY", timm_augment.translate_y_abs, (-7.0, 3.4)),
        ("TranslateXShare", timm_augment.translate_x_rel, (-0.45, 0.2)),
        ("TranslateYShare", timm_augment.translate_y_rel, (-0.45, 0.2)),
    ],
)
def test_affine_maps_equal_timms(matches, name, function, values, method):
    for value in values:
        resample = Image.Resampling[method]
        theirs = function(Image.fromarray(image()), value, fillcolor=(1, 2, 3), resample=resample)
        ours = applied(name, value, image(), (1, 2, 3), method)
        matches(name, TIMM, ours, np.asarray(theirs), 0)


def test_posterize_with_zero_bits_is_black_and_with_eight_the_identity():
    assert (applied("Posterize", 0, image()) == 0).all()
    assert (applied("Posterize", 8, image()) == image()).all()


@pytest.mark.parametrize("addition", [0, 55, 110, 220])
def test_solarize_add_equals_timms(matches, addition):
    theirs = timm_augment.solarize_add(Image.fromarray(image()), addition)
    matches("SolarizeAdd", TIMM, applied("SolarizeAdd", addition, image()), np.asarray(theirs), 0)


def tensorflow_blend(first, second, factor):
    """TensorFlow's casts to uint8 truncate."""
    first, second = first.astype(np.float32), second.astype(np.float32)
    return np.trunc(np.clip(first + np.float32(factor) * (second - first), 0, 255))


def tensorflow_enhanced(name, array, factor):
    if name == "Brightness":
        degenerate = np.zeros_like(array)
    elif name == "ContrastFromSize":
        degenerate = np.full_like(array, min(255, array[:, :, 0].size / 256))
    elif name == "Color":
        grey = array / np.float32(255) @ np.float32([0.2989, 0.587, 0.114])
        degenerate = np.repeat(np.trunc(grey * 255.5)[:, :, None], 3, axis=2)
    else:
        windows = np.lib.stride_tricks.sliding_window_view(array.astype(np.float32), (3, 3), (0, 1))
        degenerate = array.copy()
        degenerate[1:-1, 1:-1] = (windows * (1 + 4 * (np.arange(9) == 4).reshape(3, 3))).sum((-1, -2)) / 13
    return tensorflow_blend(degenerate, array, factor)


@pytest.mark.parametrize("name", ["Brightness", "ContrastFromSize", "Color", "Sharpness"])
@pytest.mark.parametrize("factor", FACTORS)
def test_blends_equal_big_visions(matches, name, factor):
    exact = name in ("Brightness", "ContrastFromSize")  # Pillow rounds the picture that the others blend with
    for array in (image(152, 131), image(260, 256)):
        theirs = tensorflow_enhanced(name, array, factor)
        matches(name, BIG_VISION, applied(name, factor, array), theirs, 0 if exact else LEVEL)


def test_equalize_equals_big_visions(matches):
    array, theirs = image(), []
    for channel in array.transpose(2, 0, 1):
        histogram = np.bincount(channel.ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        table = np.concatenate([[0], (np.cumsum(histogram) + step // 2)[:-1] // step]).clip(0, 255)
        theirs.append(table[channel])
    matches("Equalize", BIG_VISION, applied("Equalize", 0, array), np.stack(theirs, 2), 0)


def test_autocontrast_equals_big_visions(matches):
    array = image().astype(np.float32)
    low, high = array.min((0, 1)), array.max((0, 1))
    theirs = np.trunc((array * (255 / (high - low)) - low * (255 / (high - low))).clip(0, 255))
    matches("AutoContrast", BIG_VISION, applied("AutoContrast", 0, image()), theirs, LEVEL)


@pytest.mark.parametrize(
    ("name", "value", "matrix"),
    [
        ("ShearXFromPixel", 0.3, lambda h, w: (1, 0.3, 0, 0, 1, 0)),
        ("ShearYFromPixel", -0.15, lambda h, w: (1, 0, 0, -0.15, 1, 0)),
        ("TranslateX", 50.0, lambda h, w: (1, 0, 50, 0, 1, 0)),
        ("TranslateY", -20.0, lambda h, w: (1, 0, 0, 0, 1, -20)),
        ("Rotate", 30.0, lambda h, w: rotation(np.pi / 6, h, w)),
        ("Rotate", -15.0, lambda h, w: rotation(-np.pi / 12, h, w)),
    ],
)
def test_affine_maps_equal_big_visions(matches, name, value, matrix):
    """The nearest pixel may differ only in ties, as Pillow computes positions in steps of 2^-16."""
    array = image(120, 90)
    (y, x), (a0, a1, a2, b0, b1, b2) = np.indices(array.shape[:2]), matrix(*array.shape[:2])
    column, row = a0 * x + a1 * y + a2, b0 * x + b1 * y + b2
    inside = (np.round(row) >= 0) & (np.round(row) < 120) & (np.round(column) >= 0) & (np.round(column) < 90)
    rows, columns = (np.floor(axis + 0.5).astype(int).clip(0, n - 1) for axis, n in ((row, 120), (column, 90)))
    theirs = np.where(inside[:, :, None], array[rows, columns], 128)
    tie = np.minimum(abs(row % 1 - 0.5), abs(column % 1 - 0.5)) < 0.002
    assert tie.mean() <= 0.1
    ours = np.where(tie[:, :, None], theirs, applied(name, value, array))
    matches(name, BIG_VISION, ours, theirs, 0)


def rotation(radians, height, width):
    cos, sin, right, bottom = np.cos(radians), np.sin(radians), width - 1, height - 1
    return cos, -sin, (right - cos * right + sin * bottom) / 2, sin, cos, (bottom - sin * right - cos * bottom) / 2


# Computed from the formulas of big_vision's autoaugment.py, with TensorFlow's overflows of thresholds and bits.
BIG_VISION_VALUES = {
    0: {"Rotate": 0, "Posterize": 1, "Solarize": 0, "SolarizeAdd": 0, "Color": 0.1, "Contrast": 0.1, "Brightness": 0.1,
        "Sharpness": 0.1, "ShearX": 0, "ShearY": 0, "TranslateX": 0, "TranslateY": 0, "Cutout": 0},
    5: {"Rotate": 15, "Posterize": 2, "Solarize": 128, "SolarizeAdd": 55, "Color": 1, "Contrast": 1, "Brightness": 1,
        "Sharpness": 1, "ShearX": 0.15, "ShearY": 0.15, "TranslateX": 50, "TranslateY": 50, "Cutout": 20},
    10: {"Rotate": 30, "Posterize": 4, "Solarize": 0, "SolarizeAdd": 110, "Color": 1.9, "Contrast": 1.9, "Brightness": 1.9,
         "Sharpness": 1.9, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 100, "TranslateY": 100, "Cutout": 40},
    15: {"Rotate": 45, "Posterize": 6, "Solarize": 128, "SolarizeAdd": 165, "Color": 2.8, "Contrast": 2.8, "Brightness": 2.8,
         "Sharpness": 2.8, "ShearX": 0.45, "ShearY": 0.45, "TranslateX": 150, "TranslateY": 150, "Cutout": 60},
    20: {"Rotate": 60, "Posterize": 8, "Solarize": 0, "SolarizeAdd": 220, "Color": 3.7, "Contrast": 3.7, "Brightness": 3.7,
         "Sharpness": 3.7, "ShearX": 0.6, "ShearY": 0.6, "TranslateX": 200, "TranslateY": 200, "Cutout": 80},
}  # fmt: skip


@pytest.mark.parametrize("level", BIG_VISION_VALUES)
def test_levels_of_randaug_equal_big_visions(agrees, level):
    table, theirs = levels.tensorflow(translate=100.0), BIG_VISION_VALUES[level]
    assert {"AutoContrast", "Equalize", "Invert", *theirs} == set(policies.RANDAUG) == set(table)
    ours = [table[name][1](float(level), 1) for name in theirs]
    agrees("randaug: levels", BIG_VISION, ours, list(theirs.values()), 1e-12)


SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def test_only_affine_maps_have_a_sign_in_randaug():
    for name, (_, value) in levels.tensorflow(translate=100.0).items():
        assert value(7.0, -1) == (-value(7.0, 1) if name in SIGNED else value(7.0, 1))


@pytest.mark.parametrize(("reach", "centre"), [(3, (5, 9)), (4, (0, 0)), (20, (7, 8)), (0, (3, 3)), (2, (32, 39))])
def test_cutout_equals_big_visions(matches, reach, centre):
    (column, row), theirs = centre, image()
    theirs[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = 128
    ours = np.asarray(pixels.cutout(Image.fromarray(image()), reach, centre, GREY))
    matches("Cutout", BIG_VISION, ours, theirs, 0)


INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("table", ["increasing", "plain", "original"])
def test_levels_equal_timms(agrees, monkeypatch, table, sign):
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign < 0 else 0.1)  # timm negates above 1/2
    ours = levels.original() if table == "original" else levels.timm(table == "increasing")
    for name, (_, value) in ours.items():
        theirs = name + ("Increasing" if table == "increasing" and name in INCREASING else "")
        theirs = theirs.replace("Posterize", "PosterizeOriginal") if table == "original" else theirs
        theirs = timm_augment.LEVEL_TO_ARG[theirs + ("Rel" if name.startswith("Translate") else "")]
        at = [level / 2 for level in range(21)]
        expected = [theirs(level, {"translate_pct": 0.45})[0] if theirs else 0 for level in at]
        agrees("rand_augment, autoaugment: levels", TIMM, [value(level, sign) for level in at], expected, 0)


@pytest.mark.parametrize("increasing", [True, False])
def test_operations_of_rand_augment_equal_timms(increasing):
    theirs = timm_augment.rand_augment_transform(f"rand-m9-mstd0.5-inc{int(increasing)}", {})
    names = [op.name.replace("Increasing", "").replace("Rel", "") for op in theirs.ops]
    assert sorted(names) == sorted(levels.timm(increasing))
    assert {op.prob for op in theirs.ops} == {0.5}
    assert len(names) == 15


@pytest.mark.parametrize(
    "spec", ["rand_augment()", "rand_augment(10, 0, increasing=False, layers=3, method='bicubic')"]
)
def test_images_of_rand_augment_equal_timms(matches, monkeypatch, spec):
    """Apply each drawn operation by timm with the drawn level and sign."""
    calls, array = [], image()
    apply = pixels.apply
    monkeypatch.setattr(pixels, "apply", lambda *a: calls.append((a, result := apply(*a))) or result)
    op, rng = parse(spec).image, np.random.default_rng(0)
    for _ in range(70):
        op(array, rng)
    assert len({name for (name, *_), _ in calls}) == 15
    for (name, picture, value, fill, resample), ours in calls:
        assert fill == (124, 116, 104)
        theirs = timm_augment.NAME_TO_OP[name.replace("Share", "Rel")]
        arguments = () if name in ("AutoContrast", "Equalize", "Invert") else (value,)
        arguments = (int(value),) if name in ("Posterize", "Solarize", "SolarizeAdd") else arguments
        matches(name, TIMM, ours, theirs(picture, *arguments, fillcolor=fill, resample=resample), 0)


def without_levels(pairs):
    """Convert a policy to this library's form, with level 0 for operations without one."""
    unlevelled = ("AutoContrast", "Equalize", "Invert")
    return tuple(
        tuple((name, prob, 0 if name in unlevelled else level) for name, prob, level in pair) for pair in pairs
    )


@pytest.mark.parametrize(("name", "pairs"), [("v0", subpolicies.V0), ("original", subpolicies.ORIGINAL)])
def test_policies_of_autoaugment_equal_timms(name, pairs):
    theirs = [
        [(op.name.removesuffix("Rel").removesuffix("Original"), op.prob, op.magnitude) for op in pair]
        for pair in timm_augment.auto_augment_policy(name)
    ]
    assert pairs == without_levels(theirs)


@pytest.mark.parametrize(("name", "pairs"), [("CIFAR10", subpolicies.CIFAR10), ("IMAGENET", subpolicies.ORIGINAL)])
def test_policies_of_autoaugment_equal_torchvisions(name, pairs):
    policy = getattr(peers.torchvision.transforms.AutoAugmentPolicy, name)
    assert pairs == without_levels(peers.torchvision.transforms.AutoAugment(policy).policies)


def test_levels_of_cifar10_equal_its_codes(agrees):
    """Computed from the formulas of tensorflow/models, research/autoaugment."""
    table = levels.cifar10()
    assert {name for pair in subpolicies.CIFAR10 for name, _, _ in pair} <= set(table)
    for level, expected in {
        2: {"Rotate": 6, "Posterize": 4, "Solarize": 205, "TranslateX": 2, "ShearY": 0.06, "Color": 0.46},
        7: {"Rotate": -21, "Posterize": 2, "Solarize": 77, "TranslateY": -7, "ShearX": -0.21, "Sharpness": 1.36},
    }.items():
        ours = [table[name][1](float(level), 1 if level == 2 else -1) for name in expected]
        agrees("autoaugment('cifar10'): levels", "tensorflow/models", ours, list(expected.values()), 1e-12)


def test_grayscale_equals_torchvisions(matches):
    theirs = torchvision_functional.rgb_to_grayscale(Image.fromarray(image()), 3)
    matches("grayscale", TORCHVISION, pixels.grayscale(Image.fromarray(image())), theirs, 0)


@pytest.mark.parametrize("radius", [0.1, 0.7, 2.0])
def test_gaussian_blur_is_close_to_torchvisions(matches, radius):
    """Pillow's blur, which 3-Augment uses, approximates a Gaussian by boxes."""
    tensor = peers.torch.from_numpy(image()).permute(2, 0, 1)
    theirs = torchvision_functional.gaussian_blur(tensor, [17, 17], [radius, radius]).permute(1, 2, 0).numpy()
    ours = applied("GaussianBlur", radius, image())
    matches("GaussianBlur, inside", TORCHVISION, ours[8:-8, 8:-8], theirs[8:-8, 8:-8], 3 * LEVEL)


@pytest.mark.parametrize("channels", [1, 3])
def test_simple_crop_is_a_crop_of_torchvisions_padded_resize(channels):
    """torchvision rounds the longer side down; here it is an integer."""
    array = image(60, 40, channels)
    mode = "L" if channels == 1 else "RGB"
    picture = torchvision_functional.resize(
        Image.fromarray(array.squeeze()).convert(mode), 20, Image.Resampling.BICUBIC
    )
    padded = np.asarray(torchvision_functional.pad(picture, 4, padding_mode="reflect")).reshape(38, 28, channels)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (20, 20, channels))[:, :, 0]
    places = []
    for seed in range(70):
        crop = parse("simple_crop(20)").image(array, np.random.default_rng(seed))
        (place,) = np.argwhere((windows == crop).all((2, 3, 4)))
        places.append(place)
    np.testing.assert_array_equal([np.min(places, 0), np.max(places, 0)], [(0, 0), (18, 8)])
