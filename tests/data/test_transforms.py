"""Transforms of whole examples: one draw for every spatial field, keys that come and go, and shapes that are fixed."""

import subprocess
import sys
import typing

import jax
import numpy as np
import pytest
from test_pipeline import assert_same

from vit_jax.data.examples import Array
from vit_jax.data.pipeline import EvalData, TrainData
from vit_jax.data.resident import ResidentData
from vit_jax.data.source import Boxes, Encoded, Field, Image, Label, Numbers, Segments, Source, Text, UnreadableImage
from vit_jax.data.transforms.ops import Geometric
from vit_jax.data.transforms.preprocess import OPS, parse
from vit_jax.types import UserError

FIELDS = {"image": Image(), "segments": Segments(("ground", "thing")), "boxes": Boxes(), "label": Label(("a", "b"))}
# One spec of every geometric transform.
GEOMETRIC = {
    "resize": "resize((30, 50))",
    "resize_small": "resize_small(60)",
    "fit": "fit(8, 30)",
    "resize_inside": "resize_inside((60, 50))",
    "scale_crop": "scale_crop((36, 40), 0.7, 1.6)",
    "central_crop": "central_crop((34, 28))",
    "flip": "flip",
    "rotate": "rotate(30)",
    "pad_crop": "pad_crop((36, 40), 4)",
    "simple_crop": "simple_crop(56)",
    "inception_crop": "inception_crop((32, 44), 0.3)",
    "random_resized_crop": "random_resized_crop((32, 44), 0.3)",
}


def scene(height=40, width=48, box=(15, 12, 29, 24)):
    """A white box on black ground, its segments and its box."""
    left, top, right, bottom = box
    segments = np.zeros((height, width), np.uint8)
    segments[top:bottom, left:right] = 1
    return {
        "image": np.repeat(255 * segments[:, :, None], 3, axis=2),
        "segments": segments,
        "boxes": np.array([box], np.float32),
        "label": 1,
    }


def test_every_geometric_transform_is_tested():
    makes = {name for name, maker in OPS.items() if _is_geometric(typing.get_type_hints(maker).get("return"))}
    assert makes == set(GEOMETRIC)


def _is_geometric(kind):
    return isinstance(kind, type) and issubclass(kind, Geometric)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_one_draw_moves_image_segments_and_boxes_alike(name):
    transforms, seen = parse(GEOMETRIC[name], FIELDS), set()
    for seed in range(30):
        found = transforms(scene(), np.random.default_rng(seed))
        image, segments, (box,) = found["image"], found["segments"], found["boxes"]
        assert image.shape[:2] == segments.shape
        assert set(np.unique(segments)) <= {0, 1, 255}
        seen.add(segments.tobytes())
        # They may differ in the pixels at the edge, which the image interpolates.
        assert np.mean((image[:, :, 0] > 127) != (segments == 1)) < 0.03
        assert not (segments == 255).any() or name in ("rotate", "scale_crop")
        rows, columns = np.nonzero(segments == 1)
        if not len(rows):
            continue
        tolerance = 1.5 if name == "rotate" else 1.0
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, expected, atol=tolerance * max(1, image.shape[0] / 20))
    assert (len(seen) > 1) == (name not in ("resize", "resize_small", "resize_inside", "fit", "central_crop"))


@pytest.mark.parametrize("spec", [*GEOMETRIC.values(), "resize(48)|rotate(20)|inception_crop(32)|flip"])
def test_other_fields_do_not_change_what_happens_to_the_image(spec):
    for seed in range(5):
        whole, alone = np.random.default_rng(seed), np.random.default_rng(seed)
        found = parse(spec, FIELDS)(scene(), whole)
        np.testing.assert_array_equal(found["image"], parse(spec).image(scene()["image"], alone))
        assert found["label"] == 1
        assert whole.random() == alone.random()


def test_colours_change_the_image_alone():
    found = parse("solarize(0)", FIELDS)(scene(), np.random.default_rng(0))
    assert (found["image"] != scene()["image"]).any()
    for key in ("segments", "boxes"):
        np.testing.assert_array_equal(found[key], scene()[key])


def test_images_of_two_sizes_cannot_share_a_draw():
    fields = {"image": Image(), "depth": Image()}
    example = {"image": np.zeros((8, 8, 3), np.uint8), "depth": np.zeros((9, 8, 1), np.uint8)}
    with pytest.raises(UserError, match=r"'depth' of 9 x 8 pixels beside 'image' of 8 x 8.*one size"):
        parse("flip", fields)(example, np.random.default_rng(0))


def test_a_transform_names_the_key_that_it_lacks():
    with pytest.raises(UserError, match=r"patchify\(4, 9\) reads 'image'; found examples with 'views', 'crops'"):
        parse("views(1, 1, crop='flip')|patchify(4, 9)")


class Sized(Source):
    """Images of random bytes and of many sizes, with an extra key."""

    fields: typing.ClassVar = {"image": Image(), "label": Label(("a", "b")), "weight": Field(), "name": Text()}

    def __init__(self, size=20, sizes=((8, 12), (12, 8), (16, 4))):
        self.size, self.sizes = size, sizes

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        shape = self.sizes[index % len(self.sizes)]
        image = np.random.default_rng(index).integers(0, 256, (*shape, 3), np.uint8)
        return {"image": image, "label": index % 2, "weight": np.arange(4) + 0.5 * index, "name": f"number {index}"}

    def name(self, index):
        return f"file{index}"


def test_patches_of_images_of_many_sizes_make_batches_of_one_shape():
    source = Sized()
    data = EvalData(source, "patchify(4, 7)", 5)
    layout = {"patches": ((7, 48), "uint8"), "coords": ((7, 2), "int32"), "valid": ((7,), "bool")}
    assert {key: data.spec.layout[key] for key in layout} == layout
    assert "image" not in data.spec.layout
    for batch in data:
        for patches, coords, valid, index in zip(
            *(batch[key] for key in ("patches", "coords", "valid", "index")), strict=True
        ):
            image = source[index]["image"]
            assert valid.sum() == image.shape[0] * image.shape[1] // 16
            assert not patches[~valid].any()
            for patch, (row, column) in zip(patches[valid], coords[valid], strict=True):
                expected = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                np.testing.assert_array_equal(patch.reshape(4, 4, 3), expected)


def test_more_patches_than_the_budget_are_refused_with_the_numbers():
    with pytest.raises((UserError, ValueError), match=r"patchify\(4, 5\).*8 x 12 pixels.*2 x 3 patches"):
        parse("patchify(4, 5)")({"image": Sized()[0]["image"]}, np.random.default_rng(0))


def test_views_are_independent_and_make_batches_of_one_shape():
    spec = "views(2, 3, view='inception_crop(8)|flip', crop='inception_crop(4)')"
    data = TrainData(Sized(), spec, 6, seed=0)
    assert data.layout["views"] == Array((2, 8, 8, 3), "uint8")
    assert data.layout["crops"] == Array((3, 4, 4, 3), "uint8")
    assert "image" not in data.layout
    ((_, batch),) = data.from_step(0, 1)
    for views in (*batch["views"], *batch["crops"]):
        assert len({view.tobytes() for view in views}) == len(views)


def test_the_last_view_may_have_a_spec_of_its_own():
    transforms = parse("views(3, view='resize(4)', last_view='resize(4)|solarize(0)')")
    first, second, last = transforms({"image": Sized()[0]["image"]}, np.random.default_rng(0))["views"]
    np.testing.assert_array_equal(first, second)
    assert (last != first).any()


class Undecodable(Encoded):
    def decode(self):
        raise AssertionError("decoded")


class Undecoded(Sized):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"image": Undecodable()}


def test_what_is_dropped_is_never_decoded():
    data = TrainData(Undecoded(), "drop('image')", 5, seed=0)
    assert set(data.layout) == {"label", "weight"}
    for _, batch in data.from_step(0, 4):
        np.testing.assert_array_equal(batch["weight"][:, 0] * 2 % 2, batch["label"])


def test_a_string_is_left_out_of_the_arrays():
    data = TrainData(Sized(sizes=((8, 8),)), "", 5, seed=0)
    assert set(data.layout) == {"image", "label", "weight"}
    assert isinstance(data.spec.fields["name"], Text)


@pytest.mark.parametrize(
    "options", [{"threads": 4, "cache_mb": 0}, {"threads": 4}, {"workers": 2}, {"workers": 2, "cache_mb": 0}], ids=str
)
def test_an_extra_key_travels_with_its_image(options):
    def batches(**options):
        source = Sized(sizes=((8, 8),))
        return list(TrainData(source, "pad_crop(8, 2)", 6, seed=1, **options).from_step(0, 8))

    found = batches(**options)
    assert_same(found, batches(threads=1))
    for _, batch in found:
        assert batch["weight"].dtype == np.float32
        np.testing.assert_array_equal(batch["weight"][:, 0] * 2 % 2, batch["label"])


def test_an_extra_key_travels_with_its_image_on_the_devices():
    source = Sized(sizes=((8, 8),))
    host, here = TrainData(source, "", 6, seed=1), ResidentData(source, "flip", 6, seed=1)
    assert here.spec.layout == host.spec.layout
    for (_, batch), (_, places) in zip(host.from_step(0, 5), here.from_step(0, 5), strict=True):
        arrays, index = jax.tree.map(jax.numpy.asarray, (here.device_arrays, places))
        found = here.fetch(arrays, index, jax.random.key(0))
        assert found.keys() == batch.keys()
        for key in ("label", "weight"):
            np.testing.assert_array_equal(found[key], batch[key])
        for image, before in zip(np.asarray(found["image"]), batch["image"], strict=True):
            assert (image == before).all() or (image == before[:, ::-1]).all()


class Scenes(Source):
    """Scenes whose segments are encoded; those of some examples are damaged."""

    def __init__(self, damaged=(), fields=FIELDS):
        self.damaged, self.fields = set(damaged), fields

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return scene(box=(8, 9, 12 + index, 30)) | {"segments": Drawn(index, index in self.damaged)}

    def name(self, index):
        return f"scene{index}"


class Drawn(Encoded):
    def __init__(self, index, damaged):
        self._index, self._damaged = index, damaged

    def decode(self):
        if self._damaged:
            raise UnreadableImage("segments are damaged")
        return scene(box=(8, 9, 12 + self._index, 30))["segments"]


class Boxless(Scenes):
    def __init__(self):
        super().__init__(fields={key: field for key, field in FIELDS.items() if key != "boxes"})

    def __getitem__(self, index):
        return {key: value for key, value in super().__getitem__(index).items() if key != "boxes"}


def test_segments_follow_their_image_on_the_devices():
    data = ResidentData(Boxless(), "flip|pad_crop((40, 48), 4)", 20, seed=0)
    ((_, places),) = data.from_step(0, 1)
    arrays, index = jax.tree.map(jax.numpy.asarray, (data.device_arrays, places))
    found = jax.device_get(data.fetch(arrays, index, jax.random.key(3)))
    np.testing.assert_array_equal(found["image"][..., 0], 255 * found["segments"])
    assert (found["segments"] != data.device_arrays["segments"][places["index"]]).any()


def test_boxes_are_refused_on_the_devices_which_would_leave_them_behind():
    with pytest.raises(UserError, match=r"not 'boxes'; leave data\.resident unset"):
        ResidentData(Scenes(), "flip", 20, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_in_any_field_makes_the_example_unreadable(workers):
    data = TrainData(Scenes([3, 7]), "", 5, seed=0, max_unreadable=0.1, workers=workers)
    shown = [int(box[0, 2]) - 12 for _, batch in data.from_step(0, 8) for box in batch["boxes"]]
    assert set(shown) == set(range(20)) - {3, 7}
    assert data.unreadable == {f"scene{i}": "segments are damaged" for i in (3, 7)}
    evaluated = EvalData(Scenes([3, 7]), "", 5, max_unreadable=0.1)
    masked = [batch["index"][~batch["mask"]].tolist() for batch in evaluated]
    assert masked == [[3], [7], [], []]
    assert not any(batch["segments"][~batch["mask"]].any() for batch in evaluated)


def test_damage_in_a_dropped_field_is_not_seen():
    data = EvalData(Scenes(range(20)), "drop('segments')", 5)
    assert all(batch["mask"].all() for batch in data)
    assert data.unreadable == {}


class Crowded(Scenes):
    """Scenes with a different number of boxes in each."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"boxes": np.zeros((1 + index, 4), np.float32)}


def test_a_key_of_varying_shape_is_named_with_its_remedy_before_training():
    with pytest.raises(
        UserError,
        match=r"Found \(3, 4\) float32 as 'boxes' of scene2 .*expected \(1, 4\) float32.*pad.*drop\('boxes'\)",
    ):
        TrainData(Crowded(), "", 5, seed=0)
    assert "boxes" not in TrainData(Crowded(), "drop('boxes')", 5, seed=0).layout


class Missing(Scenes):
    """Scenes of which one has no label."""

    def __getitem__(self, index):
        return {key: x for key, x in super().__getitem__(index).items() if key != "label" or index != 4}


def test_a_key_that_one_example_does_not_have_is_named():
    with pytest.raises(UserError, match=r"keys \['boxes', 'image', 'segments'\] for scene4; expected .*'label'"):
        TrainData(Missing(), "", 5, seed=0)


def test_numbers_of_a_field_are_float32():
    class Measured(Scenes):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"label": np.arange(3) * 0.1}

    source = Measured(fields=FIELDS | {"label": Numbers(tuple("xyz"))})
    assert TrainData(source, "", 5, seed=0).layout["label"] == Array((3,), "float32")


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1)])
@pytest.mark.parametrize("spec", ["resize_small(256)", "resize_small(256)|central_crop(224)", "simple_crop(224)"])
def test_a_small_image_whose_resize_would_be_huge_is_unreadable(spec, shape):
    with pytest.raises(UnreadableImage, match="pixels is more than"):
        parse(spec).image(np.zeros((*shape, 3), np.uint8))


def test_long_images_stay_within_bounds():
    code = """
import re, sys
import numpy as np
from vit_jax.data.source import UnreadableImage
from vit_jax.data.transforms.preprocess import parse
for shape in ((1, 500_000), (500_000, 1), (60, 500_000), (9, 30_000)):
    for spec in sys.argv[1:]:
        try:
            parse(spec).image(np.zeros((*shape, 3), np.uint8))
        except UnreadableImage:
            pass
# The peak of this program; ru_maxrss would be at least that of the process that forked it.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""
    specs = ("resize(224, 'lanczos')", "inception_crop(224)", "resize((9, 4000))", "pad_crop(9, 4)", "resize_small(99)")
    run = subprocess.run([sys.executable, "-c", code, *specs], check=True, capture_output=True, text=True)
    assert int(run.stdout) < 1000  # MB


def test_whether_a_crop_is_readable_depends_on_the_image_alone():
    crop, rng = parse("inception_crop(224)"), np.random.default_rng(0)
    long, short = np.zeros((1, 450_000, 3), np.uint8), np.zeros((1, 30_000, 3), np.uint8)
    for _ in range(20):
        assert crop.image(short, rng).shape == (224, 224, 3)
        with pytest.raises(UnreadableImage):
            crop.image(long, rng)
