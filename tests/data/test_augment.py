"""What augmentation draws, and what it keeps; tests/parity holds what it does to pixels."""

import collections
import itertools

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.transforms import augment, levels, pixels, policies, subpolicies
from vit_jax.data.transforms.preprocess import parse
from vit_jax.types import UserError


def image(height=40, width=33, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def apply(spec, array, seed=0):
    return parse(spec).image(array, np.random.default_rng(seed))


SPECS = [
    "randaug(2, 10)",
    "randaug(3, 20)",
    "rand_augment()",
    "autoaugment",
    "autoaugment('original')",
    "autoaugment('cifar10')",
    "three_augment",
    "color_jitter(0.4, hue=0.1)",
    "grayscale(1.0)",
    "random_erasing(1.0)",
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (17, 23, 3), (8, 8, 1)])
def test_augmentation_keeps_shape_and_kind_and_its_input(spec, shape):
    array = image(*shape)
    before, op = array.copy(), parse(spec).image
    for seed in range(60):
        got = op(array, np.random.default_rng(seed))
        assert got.shape == shape
        assert got.dtype == np.uint8
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "grayscale(1.0)"])
def test_augmentation_is_a_function_of_the_generator(spec):
    array = image(120, 110)  # larger than the shifts, which are in pixels
    results = [apply(spec, array, seed) for seed in range(8)]
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(apply(spec, array, seed), result)
    assert len({result.tobytes() for result in results}) > 3


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("channels", [2, 4])
def test_other_channel_counts_are_one_clear_error(spec, channels):
    with pytest.raises(UserError, match=rf"of {channels} channels, expected 1 .* for {spec.split('(')[0]}"):
        apply(spec, np.zeros((8, 8, channels), np.uint8))


TABLES = {
    "tensorflow": (levels.tensorflow(100.0), 30),
    "timm, increasing": (levels.timm(True), 10),
    "timm": (levels.timm(False), 10),
    "original": (levels.original(), 10),
    "cifar10": (levels.cifar10(), 10),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_works_at_every_level(table, channels):
    array, (table, most) = image(9, 11, channels), TABLES[table]
    dialect = policies.Dialect(table, (128, 128, 128), policies.METHODS["random"])
    picture, rng = Image.fromarray(array.squeeze()), np.random.default_rng(0)
    for name in table:
        for level in range(most + 1):
            got = dialect.apply(name, float(level), picture, rng)
            assert (got.size, got.mode) == (picture.size, picture.mode)


@pytest.fixture
def drawn(monkeypatch):
    """The (operation, value, fill, method) that a policy applies, in order; pictures stay as they are."""
    calls = []

    def apply(name, picture, value, fill, resample):
        calls.append((name, value, fill, resample))
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
    op, rng, array = parse("randaug(2, 10)").image, np.random.default_rng(0), image(8, 8)
    for _ in range(2000):
        op(array, rng)
    assert len(drawn) == 4000
    assert uniform(collections.Counter(name for name, *_ in drawn), 16)
    sign = [np.sign(value) for name, value, *_ in drawn if name.startswith(("Rotate", "Shear", "Translate"))]
    assert abs(np.mean(sign)) < 5 / len(sign) ** 0.5
    assert {abs(value) for name, value, *_ in drawn if name == "TranslateX"} == {100}
    assert {fill for _, _, fill, _ in drawn} == {(128, 128, 128)}
    assert {resample for *_, resample in drawn} <= {Image.Resampling.NEAREST, None}


@pytest.fixture
def shifted():
    return lambda spec, picture: {
        bool((parse(spec).image(picture, np.random.default_rng(seed)) == 128).all()) for seed in range(300)
    }


@pytest.mark.parametrize("side", [32, 64, 224])
def test_a_relative_randaug_moves_small_images_as_far_as_large_ones(side, shifted):
    """In pixels, a shift by 100 leaves nothing of an image of 64 pixels; as a share it leaves most of it."""
    picture = np.zeros((side, side, 3), np.uint8)
    assert (True in shifted("randaug(1, 10)", picture)) == (side < 100)
    assert shifted("randaug(1, 10, relative=True)", picture) == {False}


def test_a_relative_randaug_is_the_other_at_224_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (224, 300, 3), np.uint8)
    for seed in range(60):
        both = [
            parse(f"randaug(2, 12, {relative})").image(picture, np.random.default_rng(seed))
            for relative in (True, False)
        ]
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize(("magnitude", "std"), [(9, 0.5), (7, 0)])
def test_rand_augment_draws_half_of_its_layers_at_a_normal_level(drawn, magnitude, std):
    op, rng, array = parse(f"rand_augment({magnitude}, {std}, layers=3)").image, np.random.default_rng(0), image(8, 8)
    for _ in range(2000):
        op(array, rng)
    assert abs(len(drawn) - 3000) < 5 * (6000 / 4) ** 0.5
    assert uniform(collections.Counter(name for name, *_ in drawn), 15)
    level = np.array([abs(value) / 3 for name, value, *_ in drawn if name == "Rotate"])
    assert level.max() <= 10
    np.testing.assert_allclose([level.mean(), level.std()], [magnitude, std], atol=5 * std / len(level) ** 0.5 + 0.02)
    assert uniform(collections.Counter(resample for *_, resample in drawn), 2)


def test_levels_of_rand_augment_are_cut_to_their_range(drawn):
    for magnitude in (0, 10):
        op, rng, array = parse(f"rand_augment({magnitude}, 4)").image, np.random.default_rng(0), image(8, 8)
        for _ in range(300):
            op(array, rng)
    level = np.array([abs(value) / 3 for name, value, *_ in drawn if name == "Rotate"])
    assert {level.min(), level.max()} == {0, 10}


@pytest.mark.parametrize(
    ("policy", "colour", "shift"),
    [("v0", (128, 128, 128), 225), ("original", (124, 116, 104), None), ("cifar10", (125, 123, 114), 9)],
)
def test_autoaugment_draws_its_pairs_uniformly_and_applies_by_probability(drawn, policy, colour, shift):
    op, rng, array = parse(f"autoaugment({policy!r})").image, np.random.default_rng(0), image(8, 8)
    for _ in range(2500):
        op(array, rng)
    expected = collections.Counter()
    pairs = {"v0": subpolicies.V0, "original": subpolicies.ORIGINAL, "cifar10": subpolicies.CIFAR10}[policy]
    for name, prob, _ in itertools.chain(*pairs):
        expected[name] += prob / len(pairs) * 2500
    found = collections.Counter(name.removesuffix("FromPixel").removesuffix("FromSize") for name, *_ in drawn)
    for name, count in expected.items():
        assert abs(found[name] - count) < 5 * count**0.5, name
    assert {fill for _, _, fill, _ in drawn} == {colour}
    assert max((abs(value) for name, value, *_ in drawn if name == "TranslateY"), default=None) == shift


def test_three_augment_is_grey_solarized_or_blurred_each_a_third_of_the_time():
    array = np.full((16, 16, 3), (200, 127, 90), np.uint8)
    array[8:] = (30, 60, 250)
    solarized = np.where(array < 128, array, 255 - array)
    counts, op, rng = collections.Counter(), parse("three_augment(0)").image, np.random.default_rng(0)
    for _ in range(900):
        got = op(array, rng)
        kinds = {
            "grey": np.ptp(got, axis=2).max() == 0,
            "solarized": (got == solarized).all(),
            "blurred": (got[[0, -1]] == array[[0, -1]]).all(),  # far from the one edge
        }
        (kind,) = [kind for kind, found in kinds.items() if found]
        counts[kind] += 1
    assert uniform(counts, 3)


def test_three_augment_ends_with_color_jitter(monkeypatch):
    calls = []
    for name in pixels.TONES:
        monkeypatch.setitem(
            pixels.TONES, name, lambda picture, value, name=name: calls.append((name, value)) or picture
        )
    apply("three_augment", image(), 1)
    assert {name for name, _ in calls[-3:]} == {"Brightness", "Contrast", "Color"}
    assert all(0.7 <= value <= 1.3 for _, value in calls[-3:])


def test_grayscale_happens_with_its_probability_and_leaves_grey_images():
    op, rng = parse("grayscale(0.3)").image, np.random.default_rng(0)
    grey = [np.ptp(op(image(4, 4), rng), axis=2).max() == 0 for _ in range(1000)]
    assert abs(np.mean(grey) - 0.3) < 5 * (0.3 * 0.7 / 1000) ** 0.5
    np.testing.assert_array_equal(apply("grayscale(1.0)", image(channels=1)), image(channels=1))


def test_color_jitter_changes_by_factors_in_any_order(monkeypatch):
    calls = []
    for name in ("Brightness", "Contrast", "Color", "Hue"):
        monkeypatch.setitem(
            pixels.TONES, name, lambda picture, value, name=name: calls.append((name, value)) or picture
        )
    op, rng, array = (
        parse("color_jitter(0.4, contrast=1.5, saturation=0.2, hue=0.1)").image,
        np.random.default_rng(0),
        image(8, 8),
    )
    for _ in range(1600):
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
    op, rng, array = parse(spec).image, np.random.default_rng(0), np.full(shape, 7, np.uint8)
    return [(op(array, rng) != 7).any(-1) for _ in range(count)]


def test_erasing_happens_with_its_probability():
    share = np.mean([mask.any() for mask in erased("random_erasing(0.3, mode='zero')", 1000)])
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 1000) ** 0.5


def test_what_is_erased_is_one_rectangle_of_uniform_area_and_aspect():
    masks = erased("random_erasing(1.0, 0.1, 0.3, mode='zero')", 1500, (100, 100, 3))
    for mask in masks[:50]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == len(rows) * len(columns)
    area = [mask.mean() for mask in masks]
    aspect = np.log([mask.any(1).sum() / mask.any(0).sum() for mask in masks])
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.15, 0.2, 0.25, 0.3], atol=0.01)
    np.testing.assert_allclose(np.quantile(aspect, [0, 0.5, 1]), [np.log(0.3), 0, -np.log(0.3)], atol=0.1)


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
