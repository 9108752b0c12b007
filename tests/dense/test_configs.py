"""The configs of segmentation and detection: each head and kind of data is a run that begins."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.dense.made import write_folder
from tests.dense.test_detect import write_coco
from vit_jax.config import load as config_file
from vit_jax.data.source import Image as Pixels
from vit_jax.data.source import Numbers
from vit_jax.data.sources.fake import Fake
from vit_jax.data.sources.segments import SegmentFolder
from vit_jax.perf.stand_in import stand_in_config, stand_ins
from vit_jax.train.build import build
from vit_jax.types import UserError

SMALL = [("data.threads", "1"), ("steps", "4"), ("batch_size", "2"), ("evals", "{}"), ("log.every", "1")]
VIT = "{'type': 'vit.ViT', 'width': 16, 'depth': 1, 'mlp_dim': 16, 'num_heads': 2, 'patch_size': 8}"
SWIN = (
    "{'type': 'swin.Swin', 'width': 8, 'depths': (1, 1, 1, 1), 'num_heads': (1, 1, 1, 1), 'window': 2, 'patch_size': 4}"
)


def run(config, tmp_path):
    parts = build(config.to_dict(), tmp_path / "run").parts
    after, metrics = jax.eval_shape(parts.make_step(), {"task": {}, "data": {}}, parts.shapes, dict(parts.batch))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), parts.shapes)
    assert metrics["loss"].shape == ()
    return parts


@pytest.mark.parametrize(
    ("head", "network", "frozen"), [("linear", VIT, True), ("mask", VIT, False), ("upernet", SWIN, False)]
)
def test_every_head_is_a_run(head, network, frozen, tmp_path):
    write_folder(tmp_path / "data", {"train": 3, "val": 1})
    name = f"{ROOT / 'configs' / 'segment.py'}:data=folder:{tmp_path / 'data'},head={head},size=32"
    parts = run(config_file.load(name, [*SMALL, ("model", network)]), tmp_path)
    assert bool(parts.shapes.frozen) is frozen
    assert all(name.startswith("backbone/") for name in _names(parts.shapes.frozen))


def _names(tree):
    from vit_jax import trees

    return trees.flatten(tree)


def write_as(root, kind):
    """One image as the authors of a data set lay it out; the classes that its mask has."""
    places = {
        "ade20k": ("images/training/a.jpg", "annotations/training/a.png"),
        "voc": ("JPEGImages/a.jpg", "SegmentationClass/a.png"),
        "cityscapes": ("leftImg8bit/train/ulm/a_leftImg8bit.png", "gtFine/train/ulm/a_gtFine_labelIds.png"),
    }[kind]
    labels = {"ade20k": [0, 1, 150], "voc": [0, 20, 255], "cityscapes": [0, 7, 33]}[kind]
    for place, array in zip(places, (np.zeros((6, 6, 3)), np.repeat(labels, 12).reshape(6, 6)), strict=True):
        (root / place).parent.mkdir(parents=True)
        Image.fromarray(array.astype(np.uint8)).save(root / place)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    (root / "classes.txt").write_text("\n".join(f"class {i}" for i in range(150)))


@pytest.mark.parametrize(
    ("kind", "classes"), [("ade20k", [255, 0, 149]), ("voc", [0, 20, 255]), ("cityscapes", [255, 0, 18])]
)
def test_data_sets_are_read_as_their_authors_lay_them_out(kind, classes, tmp_path):
    write_as(tmp_path, kind)
    config = config_file.load(f"{ROOT / 'configs' / 'segment.py'}:data={kind}:{tmp_path}", [])
    if kind == "cityscapes":
        other = tmp_path / "gtFine" / "train" / "ulm" / "a_gtFine_color.png"
        Image.new("RGB", (6, 6)).save(other)  # beside the masks there
        mask = np.asarray(Image.open(tmp_path / "gtFine" / "train" / "ulm" / "a_gtFine_labelIds.png"))
        assert set(np.unique(mask)) == {0, 7, 33}
    options = {key: value for key, value in config.data.source.to_dict().items() if key != "type"}
    found = SegmentFolder(**options)[0]["segments"].decode()
    assert sorted(set(found.ravel().tolist())) == sorted(classes)


def test_yolos_is_a_run(tmp_path):
    root = write_coco(tmp_path / "data", (("train2017", 3),))
    name = f"{ROOT / 'configs' / 'detect.py'}:data={root},variant=Ti"
    small = [
        *SMALL,
        ("model", VIT),
        ("epochs", "None"),
        ("data.preprocess", "scale_crop((32, 48), 0.6, 1.7)|flip|pad_boxes(100)"),
    ]
    run(config_file.load(name, small), tmp_path)


@pytest.mark.parametrize(
    ("name", "key"), [("segment.py:data=voc:NOWHERE", "segments"), ("detect.py:data=NOWHERE", "boxes")]
)
def test_a_plan_does_without_the_data(name, key):
    config = config_file.load(f"{ROOT / 'configs'}/{name}", [("model", VIT)]).to_dict()
    filled = stand_in_config(config, 7)
    assert filled.spec.class_names[:2] == (("background", "aeroplane") if key == "segments" else ("class 0", "class 1"))
    assert filled.spec.layout[key].shape == ((512, 512) if key == "segments" else (100, 4))


class Measured(Fake):
    """A source of numbers that a plan cannot make up."""

    @classmethod
    def fields_of(cls, class_names):
        return {"image": Pixels(), "numbers": Numbers(class_names)}


@pytest.mark.parametrize(
    ("source", "key", "shape"),
    [
        ({"type": "segments.NumbersFolder", "path": "NOWHERE"}, "numbers", (16, 16)),
        ({"type": "tfds_segments.TfdsSegments", "name": "NOWHERE", "classes": ("a", "b")}, "segments", (16, 16)),
    ],
)
def test_a_plan_knows_the_labels_of_a_source_by_its_type(source, key, shape):
    config = config_file.load(f"{ROOT / 'configs'}/segment.py", [("model", VIT)])
    config.data.source, config.data.preprocess = source, "scale_crop(16)"
    if key == "numbers":
        config.task = {"type": "depth.Depth", "head": {"type": "Linear"}}
    filled = stand_in_config(config.to_dict())
    assert filled.spec.layout[key].shape == shape


def test_a_plan_needs_no_classes_of_captions_and_says_what_it_cannot_make_up():
    (first, _) = stand_ins({"type": "pairs.Pairs", "path": "NOWHERE"}, None, UserError("no data"))
    assert first[0].keys() == {"image", "text"}
    with pytest.raises(UserError, match="'numbers': 'Numbers'"):
        stand_ins({"type": "tests.dense.test_configs:Measured"}, 3, UserError("no data"))
