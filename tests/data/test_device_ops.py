"""Operations in the compiled step against their namesakes on the host: equal results for equal draws, and equal distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from tests.parity.test_crops import described
from vit_jax.data import source
from vit_jax.data.resident import ResidentData
from vit_jax.data.sources.fake import Fake
from vit_jax.data.transforms import augment, device_colours, ops, pixels
from vit_jax.data.transforms.device_ops import (
    crop_boxes,
    flip,
    maybe,
    random_resized_crop,
    resized_parts,
    transformed,
    views,
)
from vit_jax.data.transforms.preprocess import parse
from vit_jax.types import UserError

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
# Smooth images, as photographs are, and as the antialiasing of a part needs.
SMOOTH = np.stack(
    [np.asarray(Image.fromarray(x).resize((24, 20))) for x in RNG.integers(0, 256, (6, 6, 6, 3), np.uint8)]
)


@pytest.mark.parametrize(
    ("sides", "area", "ratio"),
    [
        ((32, 32), (0.4, 1.0), (3 / 4, 4 / 3)),
        ((32, 32), (0.05, 0.4), (3 / 4, 4 / 3)),
        ((90, 400), (0.3, 1.0), (3 / 4, 4 / 3)),  # half of the draws fit nowhere
        ((100, 60), (1.0, 1.0), (1.0, 1.0)),  # none does
    ],
)
def test_a_random_resized_crop_is_drawn_as_on_the_host(sides, area, ratio):
    host, rng = ops.random_resized_crop(8, *area, ratio), np.random.default_rng(0)
    theirs = described([host.draw(*sides, rng) for _ in range(4000)], *sides)
    ours = described(crop_boxes(KEY, 4000, sides, area, ratio), *sides)
    for name in ours:
        assert scipy.stats.ks_2samp(ours[name], theirs[name], method="asymp").statistic < 0.045, name


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(8, 8), (16, 10), (40, 44)])
def test_a_part_is_resized_as_on_the_host(method, size):
    boxes = np.array([(0, 0, 24, 20), (3, 2, 20, 11), (0, 9, 7, 20), (10, 10, 24, 19), (5, 5, 13, 13), (1, 0, 24, 20)])
    ours = np.asarray(resized_parts(jnp.asarray(SMOOTH), jnp.asarray(boxes), size, method), int)
    host = ops.random_resized_crop(size, method=method)
    theirs = np.stack([host.image(x, tuple(box.tolist())) for x, box in zip(SMOOTH, boxes, strict=True)]).astype(int)
    apart = np.abs(ours - theirs)
    if method == "nearest":  # Pillow rounds where a centre lies between two pixels
        assert (apart > 0).mean() < 0.03
    else:
        assert apart.max() <= 2
        assert apart.mean() < 0.25


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (device_colours.brightness, "Brightness", (0.6, 1.0, 1.4)),
        (device_colours.contrast, "Contrast", (0.0, 0.7, 1.3)),
        (device_colours.saturation, "Color", (0.8, 1.2, 2.0)),
        (device_colours.shift_hue, "Hue", (-0.1, 0.0, 0.05, 0.5)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_change_of_colours_is_that_of_the_host(ours, theirs, values, channels):
    image = RNG.integers(0, 256, (9, 11, channels), np.uint8)
    image[0, :3] = ((0,), (128,), (255,))  # without colour
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    for value in values:
        expected = np.asarray(pixels.TONES[theirs](picture, value), int).reshape(image.shape)
        found = np.asarray(ours(jnp.asarray(image, jnp.float32), jnp.float32(value)), int)
        # The host computes hues in 64 bits.
        assert np.mean(np.abs(found - expected) > 0) < 0.03, value
        assert np.abs(found - expected).max() <= 1 + 5 * (theirs == "Hue"), value


def test_colour_jitter_has_the_distribution_of_the_host():
    image, many = SMOOTH[0, :6, :6], 2000
    settings = (0.4, 0.4, 0.2, 0.1)
    host, rng = augment.color_jitter(*settings), np.random.default_rng(0)
    theirs = np.stack([host(image, rng) for _ in range(many)]).astype(int)
    ours = np.asarray(device_colours.color_jitter(*settings)(KEY, jnp.asarray(np.repeat(image[None], many, 0))), int)
    for at in ((0, 0, 0), (2, 3, 1), (5, 5, 2)):
        found, expected = ours[:, *at], theirs[:, *at]
        assert scipy.stats.ks_2samp(found, expected, method="asymp").statistic < 0.062, at  # the 0.1 % point
    assert scipy.stats.ks_2samp(ours.std(axis=(1, 2, 3)), theirs.std(axis=(1, 2, 3))).statistic < 0.062


def test_a_fifth_of_the_images_is_grey_as_on_the_host():
    images = np.repeat(SMOOTH[:1], 1000, axis=0)
    ours = np.asarray(device_colours.grayscale(0.2)(KEY, jnp.asarray(images)))
    grey = (ours != images).any(axis=(1, 2, 3))
    assert 160 < grey.sum() < 240
    expected = augment.grayscale(1.0)(images[0], RNG)
    np.testing.assert_array_equal(ours[grey], np.broadcast_to(expected, ours[grey].shape))


@pytest.mark.parametrize("radius", [0.1, 0.7, 1.3, 2.0])
def test_a_blur_is_close_to_the_boxes_of_the_host(radius):
    ours = np.asarray(device_colours.gaussian_blur(radius, radius)(KEY, jnp.asarray(SMOOTH)), int)
    theirs = np.stack([augment.gaussian_blur(radius, radius)(x, RNG) for x in SMOOTH]).astype(int)
    assert np.abs(ours - theirs).mean() < 1.1
    assert radius < 0.5 or np.abs(ours - SMOOTH).mean() > 3 * np.abs(ours - theirs).mean()


def test_solarizing_is_that_of_the_host():
    ours = np.asarray(device_colours.solarize(100)(KEY, jnp.asarray(SMOOTH)))
    np.testing.assert_array_equal(ours, [augment.solarize(100)(x, RNG) for x in SMOOTH])


def test_maybe_changes_that_share_of_the_images():
    images = np.repeat(SMOOTH[:1], 1000, axis=0)
    changed = (np.asarray(maybe(0.8, "solarize(0)")(KEY, jnp.asarray(images))) != images).any(axis=(1, 2, 3))
    assert 760 < changed.sum() < 840


SPEC = (
    "views(2, 3, view=\"random_resized_crop(16, 0.4)|flip|maybe(0.8, 'color_jitter(0.4, 0.4, 0.2, 0.1)')|grayscale(0.2)\", "
    "crop='random_resized_crop(8, 0.1, 0.4)|flip', last_view='random_resized_crop(16)|gaussian_blur()|solarize()')"
)


def test_views_replace_the_image_as_on_the_host():
    batch = {"image": jnp.asarray(np.repeat(SMOOTH[:1], 4, axis=0)), "label": jnp.arange(4)}
    fields = {"image": source.Image(), "label": source.Label(("a", "b"))}
    data = ResidentData(Fake(8, 24, 3, 2), SPEC, 4, seed=0)
    host = parse(SPEC, fields)
    assert data.spec.fields.keys() == host.fields.keys()
    expected = host({"image": SMOOTH[0], "label": 0}, RNG)
    assert {key: x.shape for key, x in data.spec.layout.items()} == {k: np.shape(x) for k, x in expected.items()}
    made = data._augmented(KEY, batch)
    assert set(made) == {"label", "views", "crops"}
    flat = [x.tobytes() for key in ("views", "crops") for x in np.asarray(made[key]).reshape(-1, *made[key].shape[2:])]
    assert len(set(flat)) == 4 * 5  # every view of every image is a draw of its own


def test_images_and_segments_have_one_draw():
    image = jnp.asarray(RNG.integers(0, 2, (8, 12, 12, 1), np.uint8)) * 255
    fields = {"image": source.Image(), "mask": source.Segments(("no", "yes"))}
    steps = [flip(), random_resized_crop(12, 0.3, method="nearest"), device_colours.solarize(0)]
    made = transformed(steps, KEY, {"image": image, "mask": image[..., 0]}, fields)
    assert len(np.unique(made["mask"])) == 2
    np.testing.assert_array_equal(made["image"][..., 0], 255 - made["mask"])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("random_resized_crop(8, 0.0)", "0 < area_min"),
        ("color_jitter(-1.0)", "at least 0"),
        ("grayscale(2.0)", "prob must be"),
        ("maybe(2.0, 'flip')", "prob from 0 to 1"),
        ("views(0)", "at least 1 view"),
        ("views(2, 2, view='flip')", "spec `crop` for 2 crops"),
        ("views(2, view='rotate(15.0)')", "'rotate' as operation 1.*on the devices"),
        ("views(2, view='views(2)')", "'views' as operation 1.*on the devices"),
    ],
)
def test_mistakes_get_the_message_of_the_host(spec, says):
    with pytest.raises(UserError, match=says):
        ResidentData(Fake(8, 24, 3, 2), spec, 4, seed=0)


def test_views_are_independent_of_each_other():
    images = jnp.asarray(np.repeat(SMOOTH[:1], 2000, axis=0))
    made = np.asarray(views(2, view="flip")(KEY, {"image": images})["views"])
    mirrored = (made != np.asarray(images)[:, None]).any(axis=(2, 3, 4))
    counts = np.bincount(2 * mirrored[:, 0] + mirrored[:, 1], minlength=4)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
