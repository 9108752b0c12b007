import numpy as np
import pytest
from PIL import Image

from vit_jax.data.source import Encoded, cut
from vit_jax.data.transforms.ops import inception_crop, random_resized_crop
from vit_jax.data.transforms.preprocess import parse
from vit_jax.data.transforms.resample import FILTERS
from vit_jax.types import UserError


def image(height=20, width=30, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def apply(spec, picture, seed=0):
    return parse(spec).image(picture, np.random.default_rng(seed))


def test_empty_spec_changes_nothing():
    np.testing.assert_array_equal(apply("", image()), image())


def test_operations_run_from_left_to_right():
    whole = apply("resize_small(24) | central_crop((20, 22)) | resize(7)", image())
    parts = apply("resize(7)", apply("central_crop((20, 22))", apply("resize_small(24)", image())))
    np.testing.assert_array_equal(whole, parts)


def test_parentheses_and_defaults_are_optional():
    assert (apply("flip", image(), 3) == apply("flip()", image(), 3)).all()


def test_central_crop_takes_the_middle_pixels():
    np.testing.assert_array_equal(apply("central_crop(10)", image()), image()[5:15, 10:20])
    np.testing.assert_array_equal(apply("central_crop((9, 11))", image()), image()[5:14, 9:20])


def test_central_crop_of_a_smaller_image_is_an_error():
    with pytest.raises(UserError, match=r"20 x 30 pixels.*at least 21 x 21.*resize_small"):
        apply("central_crop(21)", image())


@pytest.mark.parametrize(
    ("size", "shape"), [((20, 30), (10, 15)), ((30, 20), (15, 10)), ((20, 20), (10, 10)), ((500, 333), (15, 10))]
)
def test_resize_small_sets_the_shorter_side(size, shape):
    assert apply("resize_small(10)", image(*size)).shape == (*shape, 3)


@pytest.mark.parametrize("method", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_resize_is_that_of_pillow(method):
    expected = Image.fromarray(image()).resize((9, 7), Image.Resampling[method.upper()])
    np.testing.assert_array_equal(apply(f"resize((7, 9), {method!r})", image()), np.asarray(expected))


@pytest.mark.parametrize("spec", ["resize((7, 9))", "inception_crop((7, 9))", "resize_small(9)", "pad_crop(9, 2)|flip"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_each_channel_is_treated_alike(spec, channels):
    picture = image(channels=channels)
    planes = [apply(spec, picture[:, :, [i]]) for i in range(channels)]
    np.testing.assert_array_equal(apply(spec, picture), np.concatenate(planes, axis=2))


def test_flip_mirrors_half_of_the_images():
    flips = 0
    for seed in range(400):
        got = apply("flip", image(), seed)
        flips += (got == image()[:, ::-1]).all()
        assert (got == image()).all() or (got == image()[:, ::-1]).all()
    assert 160 < flips < 240


@pytest.mark.parametrize(("mode", "numpy_mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_pad_crop_is_a_window_of_the_padded_image(mode, numpy_mode):
    padded = np.pad(image(), ((4, 4), (4, 4), (0, 0)), mode=numpy_mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (18, 25, 3))[:, :, 0]
    seen = set()
    for seed in range(600):
        matches = np.argwhere((windows == apply(f"pad_crop((18, 25), 4, {mode!r})", image(), seed)).all((2, 3, 4)))
        assert len(matches) == 1
        seen.add(tuple(matches[0]))
    assert {y for y, _ in seen} == set(range(11))
    assert {x for _, x in seen} == set(range(14))


def test_pad_crop_reflects_images_smaller_than_the_padding():
    padded = np.pad(image(2, 3), ((5, 5), (5, 5), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(apply("pad_crop((12, 13), 5)", image(2, 3)), padded)


def test_pad_crop_larger_than_the_padded_image_is_an_error():
    with pytest.raises(UserError, match=r"20 x 30.*too small for pad_crop"):
        apply("pad_crop(32, 4)", image())


@pytest.mark.parametrize("crop", [inception_crop, random_resized_crop])
@pytest.mark.parametrize("shape", [(100, 150), (300, 80)])
def test_random_crops_keep_to_bounds_area_and_ratio(shape, crop):
    rng = np.random.default_rng(0)
    boxes = np.array([crop(8, 0.1, 0.5).draw(*shape, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= shape[1]).all()
    assert (bottom <= shape[0]).all()
    width, height = right - left, bottom - top
    assert (np.abs(np.log(width / height)) < np.log(4 / 3) + 0.1).all()
    area = width * height / (shape[0] * shape[1])
    assert 0.09 < area.min() < 0.12


def test_the_area_of_a_random_resized_crop_is_uniform_in_its_range():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_crop(8, 0.1, 0.5).draw(200, 200, rng) for _ in range(4000)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 200**2
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.2, 0.3, 0.4], atol=0.02)


@pytest.mark.parametrize("crop", ["inception_crop", "random_resized_crop"])
@pytest.mark.parametrize("ratio", ["1", "1.3", "(0.5, 2)"])
def test_a_ratio_is_one_number_or_two(crop, ratio):
    assert apply(f"{crop}(8, 0.05, 1.0, {ratio}, 'bilinear')", image()).shape == (8, 8, 3)


def smooth(height=150, width=200, channels=3):
    coarse = np.random.default_rng(1).integers(0, 256, (9, 11, channels), np.uint8)
    return apply(f"resize(({height}, {width}), 'bicubic')", coarse)


def test_inception_crop_that_never_fits_takes_the_whole_image():
    got = apply("inception_crop(8, area_min=1.0, ratio=1)", image())
    assert np.abs(got - apply("resize(8)", image()).astype(int)).max() <= 1


@pytest.mark.parametrize("picture", [image(), smooth()], ids=["noise", "smooth"])
@pytest.mark.parametrize("method", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_inception_crop_resizes_its_box_as_pillow_does(method, picture):
    got = apply(f"inception_crop((8, 12), method={method!r})", picture, seed=7)
    box = inception_crop((8, 12)).draw(*picture.shape[:2], np.random.default_rng(7))
    expected = Image.fromarray(picture).crop(box).resize((12, 8), Image.Resampling[method.upper()])
    difference = np.abs(got - np.asarray(expected).astype(int))
    assert difference.mean() <= 0.5
    if method in ("nearest", "bilinear", "hamming"):
        assert difference.max() <= (method in FILTERS)


class Stored(Encoded):
    """An image that counts how it was decoded."""

    def __init__(self):
        self.whole, self.parts = 0, 0

    def decode(self):
        self.whole += 1
        return image()

    def decode_part(self, draw):
        self.parts += 1
        return cut(image(), draw(*image().shape[:2])).copy()


def test_a_crop_given_its_part_continues_as_with_the_whole():
    spec = "inception_crop(9)|flip|pad_crop(9, 2)"
    for seed in range(20):
        stored = Stored()
        found = parse(spec)({"image": stored}, np.random.default_rng(seed))["image"]
        np.testing.assert_array_equal(found, apply(spec, image(), seed))
        assert (stored.whole, stored.parts) == (0, 1)


@pytest.mark.parametrize("spec", ["flip|inception_crop(8)", "resize(12)|inception_crop(8)", "central_crop(8)", ""])
def test_only_a_leading_random_crop_may_be_decoded_alone(spec):
    stored = Stored()
    parse(spec)({"image": stored}, np.random.default_rng(0))
    assert (stored.whole, stored.parts) == (1, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resize(8)|incepton_crop(8)", r"'incepton_crop' as operation 2 of preprocess 'resize.*mean inception_crop"),
        ("zzz", r"choose one of .*inception_crop"),
        ("resize", r"operation 1 of.*expected resize\(size, method='bilinear'\): missing a required argument: 'size'"),
        ("resize(8, metod='box')", r"unexpected keyword argument 'metod'"),
        ("flip(1)", r"too many positional"),
        ("resize('8')", r"size='8' in operation 1.*make size int or tuple\[int, int\]"),
        ("resize(8.0)", r"size=8.0"),
        ("resize(True)", r"size=True"),
        ("resize((8, 8, 3))", r"size=\(8, 8, 3\)"),
        ("resize(8, 'cubic')", r"method='cubic'.*one of 'nearest'"),
        ("resize(0)", r"size must be at least 1, found 0"),
        ("inception_crop(8, area_min=2)", r"area_min <= area_max"),
        ("inception_crop(8, ratio='a')", r"make ratio finite float or tuple\[float, float\]"),
        ("inception_crop(8, ratio=0.5)", r"ratio >= 1, or two numbers, found 0.5"),
        ("random_resized_crop(8, ratio=(2, 1))", r"smaller ratio above 0 and first, found \(2.0, 1.0\)"),
        ("pad_crop(8, -1)", r"padding must be at least 0"),
        ("randaug(0)", r"make layers int from 1 to"),
        ("randaug(2, 31)", r"'randaug\(2, 31\)' as operation 1.*magnitude must be from 0 to 30, found 31"),
        ("color_jitter", r"expected color_jitter\(brightness, contrast=None.*argument: 'brightness'"),
        ("color_jitter(0.4, hue=0.6)", r"hue must be from 0 to 0.5, found 0.6"),
        ("color_jitter(-0.1)", r"must be at least 0, found -0.1, -0.1 and -0.1"),
        ("rand_augment(11)", r"magnitude must be from 0 to 10, found 11"),
        ("rand_augment(std=-1)", r"std must be at least 0, found -1"),
        ("rand_augment(method='nearest')", r"make method one of 'random', 'bilinear', 'bicubic'"),
        ("autoaugment('v1')", r"policy='v1'.*make policy one of 'v0', 'original', 'cifar10'"),
        ("three_augment(-1)", r"jitter must be at least 0, found -1"),
        ("grayscale(1.5)", r"prob must be from 0 to 1, found 1.5"),
        ("simple_crop(0)", r"size must be at least 1, found 0"),
        ("random_erasing(mode='noise')", r"make mode one of 'pixel', 'zero', 'mean'"),
        ("random_erasing(2)", r"prob must be from 0 to 1, found 2"),
        ("random_erasing(ratio=3.3)", r"0 < ratio <= 1, found 3.3"),
        ("resize(8)|", r"'' as operation 2"),
        ("resize(8", r"expected name\(literal"),
        ("resize(open('x'))", r"expected name\(literal"),
        ("a.b(8)", r"expected name\(literal"),
        ("resize(**{})", r"expected name\(literal"),
        ("resize(*[8])", r"expected name\(literal"),
        ("8", r"expected name\(literal"),
    ],
)
def test_bad_spec_is_one_clear_error(spec, message):
    with pytest.raises(UserError, match=message):
        parse(spec)


def test_rotate_turns_about_the_centre_by_at_most_the_angle():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4], image[0, 4] = 255, 200
    rng = np.random.default_rng(0)
    turned = [parse("rotate(20)").image(image, rng) for _ in range(20)]
    assert all(t.shape == image.shape and t[4, 4] == 255 for t in turned)  # the centre stays
    moved = [np.argwhere(t[:3, :, 0] > 60) for t in turned]
    assert all(abs(column - 4) <= 2 for points in moved for _, column in points)  # 4 * sin(20 degrees) = 1.4 pixels
    assert len({t.tobytes() for t in turned}) > 10
    np.testing.assert_array_equal(parse("rotate(0)").image(image, rng), image)
