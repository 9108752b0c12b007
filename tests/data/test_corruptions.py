import numpy as np
import pytest
from PIL import Image

from vit_jax.evals.corruptions import weather
from vit_jax.evals.corruptions.blurs import copy_sources
from vit_jax.evals.corruptions.kinds import KINDS, SEVERITIES, corrupt
from vit_jax.types import UserError

SHAPES = [(224, 224, 3), (32, 32, 3), (8, 8, 1), (70, 90, 1), (3, 5, 3), (1, 1, 1)]
SAME_FOR_ALL = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate")


@pytest.fixture(autouse=True)
def frost(monkeypatch):
    """Replace the photographs of frost by a bright image, so that the package is not needed."""
    monkeypatch.setattr(weather, "frost_pictures", lambda: (smooth(300, 400, 3, 9) // 2 + 128,))


def smooth(height, width, channels, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, channels), np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height), 3)) for p in small.transpose(2, 0, 1)], 2)


def structured(height, width, channels):
    """A smooth image of medium brightness with fine texture and sharp edges."""
    texture = np.random.default_rng(1).integers(0, 50, (height, width, 1), np.uint8)
    picture = smooth(height, width, channels) // 3 + texture + 30
    picture[height // 4 : height // 2, width // 3 :] += 60
    return picture


def seeded(*numbers):
    return np.random.default_rng(numbers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_and_dtype_are_kept(kind, shape):
    image = structured(*shape)
    before = image.copy()
    result = corrupt(image, kind, 3, seeded(0))
    assert (result.shape, result.dtype) == (shape, np.uint8)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_depends_only_on_the_seed(kind):
    image = structured(64, 64, 3)
    first, again, other = (corrupt(image, kind, 2, seeded(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (kind in SAME_FOR_ALL)


# The benchmark's elastic_transform shifts whole images, by more at lower severities.
@pytest.mark.parametrize(
    ("kind", "size", "mild"),
    [(kind, size, 1) for kind in KINDS for size in (32, 96) if kind != "elastic_transform"]
    + [("elastic_transform", 96, 3)],
)
def test_the_distance_grows_with_severity(kind, size, mild):
    image = structured(size, size, 3)

    def distance(severity):
        images = [corrupt(image, kind, severity, seeded(i)).astype(float) for i in range(3)]
        return np.mean([np.abs(other - image).mean() for other in images])

    assert distance(5) > 1.1 * distance(mild) > 0


@pytest.mark.parametrize("kind", BLURS)
@pytest.mark.parametrize("size", [8, 96])
def test_an_image_of_one_colour_is_unchanged_by_blurs(kind, size):
    image = np.broadcast_to(np.array([0, 100, 201], np.uint8), (size, size, 3)).copy()
    for severity in SEVERITIES:
        # The disks of ImageNet-C's two strongest defocus blurs sum to 1.01.
        allowed = 3 if kind == "defocus_blur" and size == 96 and severity > 3 else 0
        assert np.abs(corrupt(image, kind, severity, seeded(0)).astype(int) - image).max() <= allowed


def test_copy_sources_equal_sequential_copies():
    rng = seeded(0)
    places, origins = rng.permutation(60)[:50], rng.integers(0, 60, 50)
    looped = np.arange(60)
    for place, origin in zip(places, origins, strict=True):
        looped[place] = looped[origin]
    assert np.array_equal(copy_sources(60, places, origins), looped)


@pytest.mark.parametrize("size", [32, 96, 500])
def test_frost_is_a_weighted_sum_with_a_crop_of_a_photograph(size):
    image, photograph = np.full((size, size, 3), 0.5), np.full((300, 400, 3), 204, np.uint8)
    assert np.allclose(weather.blend_frost(image, photograph, seeded(0), 0.6, 0.75), 0.6 * 0.5 + 0.75 * 0.8)


def test_missing_photographs_of_frost_are_reported(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    weather.frost_pictures.cache_clear()
    with pytest.raises(UserError, match=r"pip install --no-deps imagecorruptions==1\.1\.2"):
        corrupt(structured(8, 8, 3), "frost", 1, seeded(0))


@pytest.mark.parametrize(
    ("kind", "severity", "message"),
    [
        ("gausian_noise", 1, "did you mean gaussian_noise"),
        ("xyz", 1, "choose from gaussian_noise, "),
        ("fog", 6, "Unknown severity 6; choose from 1 "),
    ],
)
def test_unknown_corruptions_are_reported(kind, severity, message):
    with pytest.raises(UserError, match=message):
        corrupt(structured(8, 8, 3), kind, severity, seeded(0))
