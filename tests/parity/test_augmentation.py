"""Augmentation against torchvision, timm and big_vision; differences are shares of the 255 grey levels."""

import collections
import importlib

import numpy as np
import pytest
from PIL import Image

from tests import peers
from vit_jax.data import augment, levels, pixels, policies
from vit_jax.data.preprocess import parse
from vit_jax.types import UserError

timm_augment = peers.timm.data.auto_augment
torchvision_functional = importlib.import_module("torchvision.transforms.v2.functional")
TIMM, TORCHVISION, BIG_VISION = "timm 1.0.31", "torchvision 0.28", "big_vision, re-derived in float32"
GREY = (128, 128, 128)
LEVEL = (1 + 1e-9) / 255


def image(height=40, width=33, channels=3, seed=0):
    """Smooth, from black to white but in one channel."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 6, channels), np.uint8)
    picture = parse(f"resize(({height}, {width}), 'bicubic')")(noise, np.random.default_rng(0)).copy()
    picture[:, :, 0] = picture[:, :, 0] // 2 + 40
    return picture


def applied(name, value, array, fill=GREY, method="NEAREST"):
    picture = pixels.apply(name, Image.fromarray(array), float(value), fill, Image.Resampling[method])
    return np.asarray(picture)


@pytest.fixture
def matches(agrees):
    """agrees() of two images."""
    return lambda name, reference, ours, theirs, tolerance: agrees(
        f"op: {name}", reference, np.asarray(ours, np.float64) / 255, np.asarray(theirs, np.float64) / 255, tolerance
    )


def apply(spec, array, seed=0):
    return parse(spec)(array, np.random.default_rng(seed))


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
def test_colours_change_as_in_torchvision(matches, name, function, values, tolerance):
    array = image()
    tensor = peers.torch.from_numpy(array).permute(2, 0, 1)
    for value in values:
        arguments = () if values == (0,) else (value,)
        theirs = getattr(torchvision_functional, function)(tensor, *arguments).permute(1, 2, 0).numpy()
        matches(name, TORCHVISION, applied(name, value, array), theirs, tolerance)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.003, 0.1, 0.5])
def test_hue_turns_as_in_torchvision(matches, turn):
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
def test_pixels_move_as_in_timm(matches, name, function, values, method):
    for value in values:
        resample = Image.Resampling[method]
        theirs = function(Image.fromarray(image()), value, fillcolor=(1, 2, 3), resample=resample)
        ours = applied(name, value, image(), (1, 2, 3), method)
        matches(name, TIMM, ours, np.asarray(theirs), 0)


@pytest.mark.parametrize("addition", [0, 55, 110, 220])
def test_solarize_add_is_that_of_timm(matches, addition):
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
def test_blends_are_those_of_big_vision(matches, name, factor):
    array = image(150, 120)
    exact = name in ("Brightness", "ContrastFromSize")  # the others blend with a picture that Pillow rounds
    theirs = tensorflow_enhanced(name, array, factor)
    matches(name, BIG_VISION, applied(name, factor, array), theirs, 0 if exact else LEVEL)


def test_equalize_is_that_of_big_vision(matches):
    array, theirs = image(), []
    for channel in array.transpose(2, 0, 1):
        histogram = np.bincount(channel.ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        table = np.concatenate([[0], (np.cumsum(histogram) + step // 2)[:-1] // step]).clip(0, 255)
        theirs.append(table[channel])
    matches("Equalize", BIG_VISION, applied("Equalize", 0, array), np.stack(theirs, 2), 0)


def test_autocontrast_is_that_of_big_vision(matches):
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
def test_pixels_move_as_in_big_vision(matches, name, value, matrix):
    """The nearest pixel may be another one only where two are equally near, as Pillow counts in steps of 2^-16."""
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


# Worked out from the formulas of big_vision's autoaugment.py; thresholds and bits as TensorFlow's overflows make them.
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
def test_levels_of_randaug_mean_what_they_mean_in_big_vision(agrees, level):
    table, theirs = levels.tensorflow(translate=100.0), BIG_VISION_VALUES[level]
    assert {"AutoContrast", "Equalize", "Invert", *theirs} == set(policies.RANDAUG) == set(table)
    ours = [table[name][1](float(level), 1) for name in theirs]
    agrees("randaug: levels", BIG_VISION, ours, list(theirs.values()), 1e-12)


SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def test_only_moves_have_a_sign_in_randaug():
    for name, (_, value) in levels.tensorflow(translate=100.0).items():
        assert value(7.0, -1) == (-value(7.0, 1) if name in SIGNED else value(7.0, 1))


@pytest.mark.parametrize(("reach", "centre"), [(3, (5, 9)), (4, (0, 0)), (20, (7, 8)), (0, (3, 3)), (2, (32, 39))])
def test_cutout_is_that_of_big_vision(matches, reach, centre):
    (column, row), theirs = centre, image()
    theirs[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = 128
    ours = np.asarray(pixels.cutout(Image.fromarray(image()), reach, centre, GREY))
    matches("Cutout", BIG_VISION, ours, theirs, 0)


SPECS = ["randaug(2, 10)", "randaug(3, 20)", "color_jitter(0.4, hue=0.1)", "random_erasing(1.0)"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (17, 23, 3), (8, 8, 1)])
def test_augmentation_keeps_shape_and_kind_and_its_input(spec, shape):
    array = image(*shape)
    before, op = array.copy(), parse(spec)
    for seed in range(60):
        got = op(array, np.random.default_rng(seed))
        assert got.shape == shape
        assert got.dtype == np.uint8
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("spec", SPECS)
def test_augmentation_is_a_function_of_the_generator(spec):
    array = image(120, 110)  # larger than the shifts, which are in pixels
    results = [apply(spec, array, seed) for seed in range(6)]
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(apply(spec, array, seed), result)
    assert len({result.tobytes() for result in results}) > 3


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("channels", [2, 4])
def test_other_channel_counts_are_one_clear_error(spec, channels):
    with pytest.raises(UserError, match=rf"of {channels} channels, expected 1 .* for {spec.split('(')[0]}"):
        apply(spec, np.zeros((8, 8, channels), np.uint8))


@pytest.fixture
def drawn(monkeypatch):
    """The (operation, value, method) that a policy applies, in order; pictures stay as they are."""
    calls = []

    def apply(name, picture, value, fill, resample):
        calls.append((name, value, resample))
        return picture

    monkeypatch.setattr(pixels, "apply", apply)
    monkeypatch.setattr(
        pixels, "cutout", lambda picture, reach, centre, fill: apply("Cutout", picture, reach, fill, None)
    )
    return calls


def uniform(counts, among, spread=5.0):
    """Whether counts of equally likely things are within 5 standard deviations of their mean."""
    mean = sum(counts.values()) / among
    return len(counts) == among and all(abs(count - mean) < spread * mean**0.5 for count in counts.values())


def test_randaug_draws_its_operations_and_signs_uniformly(drawn):
    op, rng, array = parse("randaug(2, 10)"), np.random.default_rng(0), image(8, 8)
    for _ in range(2000):
        op(array, rng)
    assert len(drawn) == 4000
    assert uniform(collections.Counter(name for name, _, _ in drawn), 16)
    assert uniform(collections.Counter(value for name, value, _ in drawn if name == "Rotate"), 2)
    assert {resample for _, _, resample in drawn} <= {Image.Resampling.NEAREST, None}


def test_color_jitter_changes_by_factors_in_any_order(monkeypatch):
    calls = []
    for name in ("Brightness", "Contrast", "Color", "Hue"):
        monkeypatch.setitem(
            pixels.TONES, name, lambda picture, value, name=name: calls.append((name, value)) or picture
        )
    op, rng, array = (
        parse("color_jitter(0.4, contrast=1.5, saturation=0.2, hue=0.1)"),
        np.random.default_rng(0),
        image(8, 8),
    )
    for _ in range(2400):
        op(array, rng)
    orders = collections.Counter(tuple(name for name, _ in calls[i : i + 4]) for i in range(0, len(calls), 4))
    assert uniform(orders, 24)
    for name, low, high in [("Brightness", 0.6, 1.4), ("Contrast", 0, 2.5), ("Color", 0.8, 1.2), ("Hue", -0.1, 0.1)]:
        values = [value for called, value in calls if called == name]
        np.testing.assert_allclose(
            [min(values), np.mean(values), max(values)], [low, (low + high) / 2, high], atol=0.03
        )


def test_color_jitter_of_zero_changes_nothing():
    np.testing.assert_array_equal(apply("color_jitter(0)", image()), image())


def test_contrast_and_saturation_are_as_brightness_unless_given():
    np.testing.assert_array_equal(apply("color_jitter(0.4)", image()), apply("color_jitter(0.4, 0.4, 0.4)", image()))


def erased(spec, count, shape=(60, 50, 3)):
    """The masks of what was erased, of images of a colour that no filling has."""
    op, rng, array = parse(spec), np.random.default_rng(0), np.full(shape, 7, np.uint8)
    return [(op(array, rng) != 7).any(-1) for _ in range(count)]


def test_erasing_happens_with_its_probability():
    share = np.mean([mask.any() for mask in erased("random_erasing(0.3, mode='zero')", 2000)])
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5


def test_what_is_erased_is_one_rectangle_of_uniform_area():
    masks = erased("random_erasing(1.0, 0.1, 0.3, mode='zero')", 1500, (100, 100, 3))
    for mask in masks[:50]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == len(rows) * len(columns)
        assert 0.28 < len(rows) / len(columns) < 3.5
    area = [mask.mean() for mask in masks]
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.15, 0.2, 0.25, 0.3], atol=0.01)


@pytest.mark.parametrize("channels", [3, 1])
def test_erased_pixels_are_noise_black_or_the_mean(channels):
    array = np.full((200, 200, channels), 7, np.uint8)
    filled = {}
    for mode in ("pixel", "zero", "mean"):
        got = apply(f"random_erasing(1.0, 0.9, 0.9, 0.9, {mode!r})", array)
        filled[mode] = got[(got != 7).any(-1)]
        assert len(filled[mode]) > 20_000
    mean, std = (augment.MEAN, augment.STD) if channels == 3 else (augment.MEAN.mean(), augment.STD.mean())
    np.testing.assert_array_equal(filled["zero"], 0)
    np.testing.assert_array_equal(filled["mean"] - np.round(mean), 0)
    np.testing.assert_allclose(filled["pixel"].mean(0), np.broadcast_to(mean, channels), atol=1.5)
    np.testing.assert_allclose(
        filled["pixel"].std(0), np.broadcast_to(std, channels), atol=2.5
    )  # cut at black and white


def test_erasing_that_never_fits_changes_nothing():
    np.testing.assert_array_equal(apply("random_erasing(1.0, 1.0, 1.0)", image()), image())
