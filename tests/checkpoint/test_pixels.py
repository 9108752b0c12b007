"""Published models see the pixels that their own library gives them, also after an export."""

import numpy as np
import pytest
from PIL import Image

from tests.peers import timm, torch, torchvision, transformers
from vit_jax.data.transforms.preprocess import parse
from vit_jax.pretrained import processor, timm_config
from vit_jax.pretrained.pretrained import Preprocessing, from_spec
from vit_jax.types import UserError

# Heights and widths: square, the usual ratios of cameras, odd, thin, and smaller than the models take.
SHAPES = [(60, 60), (48, 64), (64, 48), (75, 50), (50, 75), (90, 160), (160, 90), (61, 97), (97, 61), (100, 33)]
SHAPES += [(33, 100), (37, 53), (53, 37), (71, 72), (72, 71), (99, 98), (49, 50), (50, 49), (85, 47), (47, 85)]
SHAPES += [(31, 29), (29, 31), (20, 30), (30, 20), (32, 32), (32, 33), (33, 32), (120, 200), (201, 119), (43, 500)]
HALF = (0.5, 0.5, 0.5)
IDENTITY = {"do_rescale": False, "do_normalize": False}


def photo(shape):
    """Return edges and texture, which show a shift by one pixel."""
    return np.random.default_rng(shape[0] * 1000 + shape[1]).integers(0, 256, (*shape, 3), np.uint8)


def ours(images, photo):
    return parse(images.spec).image(photo).astype(int)


def timms(config, photo):
    stated = timm.data.resolve_data_config({}, pretrained_cfg=config["pretrained_cfg"])
    found = timm.data.create_transform(**stated, normalize=False)(Image.fromarray(photo))
    return found.permute(1, 2, 0).numpy().astype(int)


def test_the_rules_are_those_of_big_vision():
    """As resize_small and central_crop of big_vision/pp/ops_image.py compute the sizes, in float32."""
    for height, width in SHAPES:
        factor = torch.tensor(36, dtype=torch.float32) / min(height, width)
        sides = torch.round(torch.tensor([height, width], dtype=torch.float32) * factor).int().tolist()
        picture = photo((height, width))
        resized = parse("resize_small(36)").image(picture)
        assert list(resized.shape[:2]) == sides
        top, left = (sides[0] - 32) // 2, (sides[1] - 32) // 2
        np.testing.assert_array_equal(
            parse("resize_small(36)|central_crop(32)").image(picture), resized[top : top + 32, left : left + 32]
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rules_are_those_of_torchvision(shape):
    tv, picture = torchvision.transforms, photo(shape)
    for side, size in ((35, 32), (36, 32), (24, 32), (32, (31, 20))):
        theirs = tv.Compose([tv.Resize(side), tv.CenterCrop(size)])(Image.fromarray(picture))
        spec = f"resize_small({side}, rule='torchvision')|central_crop({size}, rule='torchvision')"
        np.testing.assert_array_equal(parse(spec).image(picture), np.asarray(theirs), err_msg=spec)


STATED = [
    {"crop_pct": 0.9},
    {"crop_pct": 0.875, "interpolation": "bilinear"},
    {"crop_pct": 1.0, "interpolation": "lanczos"},
    {"crop_pct": 0.95, "crop_mode": "squash"},
    {"crop_pct": 1.0, "crop_mode": "squash"},
    {"crop_pct": 0.9, "input_size": [3, 24, 40]},
]


@pytest.mark.parametrize("stated", STATED, ids=str)
def test_the_pixels_are_those_of_timm(stated):
    config = {"pretrained_cfg": {"input_size": [3, 32, 32], "mean": HALF, "std": HALF} | stated}
    size = tuple(config["pretrained_cfg"]["input_size"][1:])
    images, notes = timm_config.read_preprocessing(config, size, 3, "it")
    exported, export_notes = timm_config.image_config(images, size)
    assert notes == export_notes == []
    again = {"pretrained_cfg": exported | {"input_size": [3, *size]}}
    for shape in SHAPES:
        picture = photo(shape)
        np.testing.assert_array_equal(ours(images, picture), timms(config, picture), err_msg=str(shape))
        np.testing.assert_array_equal(ours(images, picture), timms(again, picture), err_msg=str(shape))


PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    ("ViTImageProcessor", {"size": 32, "resample": 3}),
    ("ViTFeatureExtractor", {"size": [32, 32], "resample": 0}),
    ("ViTImageProcessor", {"size": {"shortest_edge": 35}, "do_center_crop": True, "crop_size": 32}),
    ("DeiTImageProcessor", {"size": 36, "crop_size": 32}),
    ("DeiTImageProcessorFast", {"size": {"height": 35, "width": 41}, "crop_size": {"height": 32, "width": 32}}),
    ("DeiTImageProcessor", {"size": 24, "crop_size": 32}),
    ("CLIPImageProcessor", {"size": 35, "crop_size": 32}),
    ("CLIPImageProcessor", {"size": 35, "default_to_square": True, "crop_size": 32}),
    ("BitImageProcessor", {"size": {"shortest_edge": 37}, "crop_size": 32, "resample": 2}),
    ("BeitImageProcessor", {"size": 32}),
    ("BeitImageProcessor", {"size": 40, "do_center_crop": True, "crop_size": 32}),
    ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}}),
    ("ViTImageProcessor", {"do_resize": False, "do_center_crop": True, "crop_size": 32}),
]


@pytest.mark.parametrize(("kind", "stated"), PROCESSORS, ids=str)
def test_the_pixels_are_those_of_transformers(kind, stated, tmp_path):
    images, notes = processor.read_preprocessing(stated | {"image_processor_type": kind}, (32, 32), 3, "vit", "it")
    exported, export_notes = processor.make_config(images)
    assert notes == export_notes == []
    name = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    for config, theirs in ((stated, name), (exported, exported["image_processor_type"])):
        state = {key: value for key, value in config.items() if key != "image_processor_type"} | IDENTITY
        fast = getattr(transformers, theirs)(**state)
        slow = getattr(transformers, f"{theirs}Pil")(**state)
        for shape in SHAPES:
            picture = photo(shape)
            mine = ours(images, picture)
            exact, other = (
                np.asarray(p(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
                for p in (slow, fast)
            )
            # Where an image is padded by an odd number of pixels, the two backends differ, and torchvision's is the default.
            if stated.get("size") != 24 and "do_resize" not in stated:
                np.testing.assert_array_equal(mine, exact, err_msg=f"{theirs} {shape}")
            # torchvision resamples tensors in other integers than Pillow; a shift by a pixel differs by 85 on average.
            assert np.abs(mine - other).mean() <= 0.5, f"{theirs} {shape}"


FACTORS = [
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    {"rescale_factor": 0.5, "do_normalize": False},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    {"image_mean": 0.3, "image_std": 0.7},
    {"do_convert_rgb": True, "do_pad": False},
    {},
]


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Beit", "Siglip", "CLIP", "Bit"])
@pytest.mark.parametrize("stated", FACTORS, ids=str)
def test_the_values_are_those_of_transformers(kind, stated):
    sizes = {"size": {"height": 32, "width": 32}, "crop_size": 32}
    images, _ = processor.read_preprocessing(
        stated | sizes | {"image_processor_type": f"{kind}ImageProcessor"}, (32, 32), 3, "vit", "it"
    )
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**stated, **sizes)
    picture = photo((40, 50))
    found = np.asarray(theirs(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    mean, std = np.array(images.mean), np.array(images.std)
    np.testing.assert_allclose((ours(images, picture) / 255 - mean) / std, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_processor_type", "ConvNextImageProcessor"),
        ("do_resize", "yes"),
        ("size", 40),
        ("size", {"shortest_edge": 32}),
        ("size", {"shortest_edge": 32, "longest_edge": 64}),
        ("size", {"max_height": 32, "max_width": 32}),
        ("size", {"height": 32}),
        ("size", "32"),
        ("crop_size", 40),
        ("crop_size", {"shortest_edge": 32}),
        ("resample", 6),
        ("rescale_factor", -1),
        ("rescale_factor", "1/255"),
        ("image_std", [0, 1, 1]),
        ("image_mean", [0.5]),
        ("pad_size", {"height": 64, "width": 64}),
        ("do_flip_channel_order", True),
        ("crop_pct", 0.9),
        ("rescale_offset", True),
    ],
)
def test_what_changes_pixels_and_is_not_honoured_is_refused_by_name(field, value):
    config = {"size": 32, "do_center_crop": field == "crop_size", field: value}
    with pytest.raises(UserError, match=field if field != "image_processor_type" else "ConvNextImageProcessor"):
        processor.read_preprocessing(config, (32, 32), 3, "vit", "it")


def test_every_option_of_transformers_is_known():
    """A new one is to be honoured or refused, so it must not be forgotten."""
    refused = {"pad_size", "image_seq_length"}
    known = processor.READ | processor.WITHOUT_EFFECT
    assert set(transformers.processing_utils.ImagesKwargs.__annotations__) - known == refused


@pytest.mark.parametrize("rule", ["big_vision", "torchvision", "transformers"])
def test_a_spec_is_parsed_as_it_is_written(rule):
    for resized, keep_ratio in (((32, 48), False), ((40, 50), False), ((40, 60), True), (40, True), (None, False)):
        images = Preprocessing((32, 48), resized, "bicubic", HALF, HALF, keep_ratio, rule)
        again = from_spec(images.spec, HALF, HALF)
        assert again is not None
        assert again.spec == images.spec
        assert parse(images.spec).image(photo((64, 80))).shape == (32, 48, 3)
    for other in (
        "resize_small(40)|central_crop(32, rule='torchvision')",
        "flip",
        "resize_small(40)",
        "a(",
        "resize(8)|flip",
    ):
        assert from_spec(other, HALF, HALF) is None
