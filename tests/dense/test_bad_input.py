"""What is wrong with masks is said in one message, with names and counts, before anything is compiled."""

import numpy as np
import pytest
from PIL import Image

from tests.dense.made import CLASSES, config_of, scene, write_folder
from vit_jax.config.factory import build
from vit_jax.data.decode import decode_labels
from vit_jax.data.sources.segments import SegmentFolder
from vit_jax.train.build import build as build_run
from vit_jax.types import UserError


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", {"train": 6, "val": 2}, (12, 16))


def masks(folder):
    return sorted((folder / "masks" / "train").glob("*.png"))


def test_masks_of_another_size_are_named_and_counted(folder):
    for path in masks(folder)[:2]:
        Image.fromarray(np.zeros((12, 15), np.uint8)).save(path)
    with pytest.raises(
        UserError, match=r"2 of another size than their image \(.*0\.png of 12 x 15, its image of 12 x 16"
    ):
        SegmentFolder(str(folder))


def test_unknown_labels_are_named_and_counted(folder):
    for label, path in zip((7, 9, 9), masks(folder), strict=False):
        labels = scene(0, (12, 16))
        labels[0, :5] = label
        Image.fromarray(labels).save(path)
    with pytest.raises(UserError, match=r"3 with labels other than 3 classes .*0\.png with 7: 5 pixels"):
        SegmentFolder(str(folder))
    source = SegmentFolder(str(folder), ignore=(7, 9, 255))
    assert (source[0]["segments"].decode() == 255).sum() == 5


def test_an_unknown_label_that_the_first_look_missed_stops_with_its_file(folder):
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(masks(folder)[3])
    source = SegmentFolder(str(folder), scan=1)
    with pytest.raises(UserError, match=r"labels 9: 192 pixels in .*3\.png"):
        source[3]["segments"].decode()


def test_missing_pairs_are_named_and_counted(folder):
    masks(folder)[0].unlink()
    (folder / "images" / "train" / "5.png").unlink()
    with pytest.raises(UserError, match=r"1 without an image \(5\); 1 without a mask \(0\)"):
        SegmentFolder(str(folder))
    (folder / "train.txt").write_text("1\n2\n")
    assert len(SegmentFolder(str(folder), names="{split}.txt")) == 2
    (folder / "train.txt").write_text("1\n77\n")
    with pytest.raises(UserError, match=r"1 without an image \(77\); 1 without a mask \(77\)"):
        SegmentFolder(str(folder), names="{split}.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ()}, "0 classes"),
        ({"classes": ("a", "a")}, "2 classes, 1 of them different"),
        ({"classes": tuple(map(str, range(256)))}, "256 classes"),
        ({"values": (0, 1)}, "2 labels in `values` for 3 classes"),
        ({"values": (0, 1, 1)}, "one label of two classes"),
        ({"values": (0, 1, 2), "ignore": (2,)}, "2 in both"),
        ({"values": (0, 1, -2)}, "below 0"),
        ({"split": "nowhere"}, "folder that cannot be read"),
        ({"classes": "nothing.txt"}, "no readable text file"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(folder, options, words):
    with pytest.raises(UserError, match=words):
        SegmentFolder(**{"path": str(folder), "classes": CLASSES, **options})


def test_class_lists_that_differ_are_refused_before_any_compile(folder, tmp_path):
    config = config_of(folder)
    config.evals.test.source.classes = ("ground", "red", "blue")
    with pytest.raises(UserError, match=r"evals\.test: its classes differ.*only in training: \['green'\].*\['blue'\]"):
        build_run(config.to_dict(), tmp_path / "run")


def test_a_task_of_pixels_says_which_data_it_needs(tmp_path):
    config = config_of(tmp_path)
    config.data.source, config.evals = {"type": "digits.Digits"}, {}
    config.data.preprocess = ""
    with pytest.raises(UserError, match=r"learns one Segments field; found examples with 'image', 'label'"):
        build_run(config.to_dict(), tmp_path / "run")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"layers": (4,)}, r"task\.layers=\(4,\); the network has 1"),
        ({"scales": (0.0,)}, "scales above 0"),
        ({"class_weights": (1.0,)}, "class_weights has 1 numbers; expected 3"),
        ({"loss_name": "hinge"}, "task.loss_name is 'hinge'"),
        ({"head": {"type": "Lniear"}}, "task.head.type: unknown type 'Lniear'; did you mean Linear"),
        ({"head": {"type": "MaskTransformer", "width": 10, "num_heads": 3}}, "cannot be split into num_heads=3"),
    ],
    ids=str,
)
def test_wrong_tasks_are_refused_before_any_compile(folder, tmp_path, task, words):
    config = config_of(folder, **task)
    config.data.preprocess, config.evals = "resize((24, 32))", {}
    with pytest.raises(UserError, match=words):
        build_run(config.to_dict(), tmp_path / "run")


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "RGB", "1"])
def test_masks_of_every_kind_decode_to_the_numbers_in_them(mode, tmp_path):
    labels = scene(3)
    array = {"I;16": labels.astype(np.uint16) * 300, "1": labels > 0}.get(mode, labels)
    if mode == "RGB":
        array = np.stack([labels * 10, labels * 20, labels], axis=-1)
        array = array.astype(np.uint8)
    image = Image.fromarray(array, "P") if mode == "P" else Image.fromarray(array)
    if mode == "P":
        image.putpalette(bytes(range(9)))
    image.save(tmp_path / "mask.png")
    found = decode_labels((tmp_path / "mask.png").read_bytes())
    expected = {
        "I;16": labels.astype(int) * 300, "1": (labels > 0).astype(int),
        "RGB": labels.astype(int) * (10 * 65536 + 20 * 256 + 1),
    }.get(mode, labels)  # fmt: skip
    np.testing.assert_array_equal(found, expected)


def test_colours_and_deep_labels_become_classes(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    labels = scene(1)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "images" / "a_photo.jpg")
    colours = np.array([[0, 0, 0], [128, 64, 128], [220, 20, 60]], np.uint8)
    Image.fromarray(colours[labels]).save(tmp_path / "masks" / "a_labels.png")
    spec = {"type": "segments.SegmentFolder", "path": str(tmp_path), "classes": CLASSES, "images": "images", "masks": "masks",
            "image_suffix": "_photo", "mask_suffix": "_labels"}  # fmt: skip
    source = build(spec | {"values": [(0, 0, 0), (128, 64, 128), (220, 20, 60)]}, "data.source")
    np.testing.assert_array_equal(source[0]["segments"].decode(), labels)
    Image.fromarray((labels.astype(np.uint16) + 1) * 1000).save(tmp_path / "masks" / "a_labels.png")
    source = build(spec | {"values": [1000, 2000, 3000], "ignore": [0]}, "data.source")
    np.testing.assert_array_equal(source[0]["segments"].decode(), labels)
