"""Detection from COCO's format to boxes.json: data, matching, training, evaluation and prediction."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from configs import common
from tests.dense.made import image_of, scene
from vit_jax.cli import evaluate, predict
from vit_jax.data.pipeline import EvalData
from vit_jax.data.sources.coco import Coco
from vit_jax.evals.coco_map import NAMES, CocoMap, coco_numbers
from vit_jax.layers.boxes import from_corners, generalized_iou, to_corners
from vit_jax.models.vit import ViT
from vit_jax.tasks.detect import Detect
from vit_jax.train.build import build as build_run
from vit_jax.train.fit import fit
from vit_jax.types import UserError

SPARSE_IDS = (3, 17, 90)  # COCO's ids have gaps


def annotations_of(count, split):
    """Images with some boxes, one with none, one with a crowd and one with more than 100 boxes."""
    rng = np.random.default_rng(len(split))
    rows = []
    for i in range(count):
        boxes = 0 if i == 1 else 120 if i == 2 and split == "val" else 2
        for _ in range(boxes):
            left, top = rng.integers(0, 20, 2).tolist()
            width, height = rng.uniform(3, 10, 2).round(2).tolist()
            crowd = int(i == 3 and not any(row["image_id"] == 100 + i for row in rows))
            rows.append(
                {"id": len(rows) + 1, "image_id": 100 + i, "category_id": SPARSE_IDS[int(rng.integers(2))], "iscrowd": crowd,
                 "bbox": [left, top, width, height], "area": width * height}
            )  # fmt: skip
    return rows


def write_coco(root, counts=(("train", 8), ("val", 5)), change=None):
    (root / "annotations").mkdir(parents=True)
    for split, count in counts:
        (root / split).mkdir()
        for i in range(count):
            Image.fromarray(image_of(scene(i, (32, 40)), i)).save(root / split / f"{i}.png")
        found = {
            "images": [{"id": 100 + i, "file_name": f"{i}.png", "height": 32, "width": 40} for i in range(count)],
            "annotations": annotations_of(count, split),
            "categories": [{"id": number, "name": f"kind {number}"} for number in SPARSE_IDS],
        }
        if change:
            change(found)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))
    return root


def config_of(root, steps=3):
    config = common.get_config()
    config.steps, config.batch_size = steps, 4
    config.model = {"type": "vit.ViT", "width": 16, "depth": 2, "mlp_dim": 16, "num_heads": 2, "patch_size": 8}
    config.task = {"type": "detect.Detect", "detection_tokens": 130, "mean": 0.5, "std": 0.5, "between": True}
    config.data.source = {"type": "coco.Coco", "path": str(root), "split": "train"}
    config.data.preprocess = "random_resized_crop((32, 40), 0.5)|flip|pad_boxes(5)"
    config.data.threads = 1
    config.optim.lr, config.optim.schedule.warmup_steps = 1e-3, 1
    config.log.every, config.checkpoint.every = 1, steps
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    config = config_of(write_coco(root / "data"))
    source = {"type": "coco.Coco", "path": str(root / "data"), "split": "val"}
    preprocess = "resize_inside((24, 40))|pad((32, 40))|pad_boxes(130)"
    config.evals.test = {"type": "coco_map.CocoMap", "source": source, "preprocess": preprocess, "batch_size": 2}
    return root, fit(config, root / "run")


def test_the_numbers_are_those_of_pycocotools_on_the_json_that_predict_writes(place, tmp_path, capsys):
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    root, metrics = place
    file = root / "data" / "annotations" / "instances_val.json"
    flags = [f"--model={root / 'run'}", f"--annotations={file}", f"--out={tmp_path}", "--batch_size=2", "--json"]
    assert predict.main([*flags, "--least_score=0.3", str(root / "data" / "val")]) == 0
    shown = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert all(box["score"] >= 0.3 for row in shown for box in row["boxes"])
    coco = pycocotools.COCO(str(file))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "boxes.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert [metrics[f"test/{name}"] for name in NAMES] == evaluation.stats.tolist()
    assert len(json.loads((tmp_path / "boxes.json").read_text())) == 5 * 130
    command = [f"--model={root / 'run'}", f"--data=coco:{root / 'data'}", "--split=val", "--json"]
    assert evaluate.main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert [again[name] for name in NAMES] == evaluation.stats.tolist()


def test_perfect_boxes_have_an_average_precision_of_one(tmp_path):
    pytest.importorskip("pycocotools")
    truth = json.loads((write_coco(tmp_path / "data") / "annotations" / "instances_train.json").read_text())
    results = [
        {**{k: row[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for row in truth["annotations"]
    ]
    found = coco_numbers(truth, results)
    assert found["ap"] == found["ar100"] == pytest.approx(1.0)
    assert coco_numbers(truth, [])["ap"] == 0.0


def test_a_missing_pycocotools_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"needs pycocotools.*vit_jax\[coco\]"):
        coco_numbers({}, [{}])


def test_crowds_are_not_learned_and_boxes_are_filled_up(tmp_path):
    source = Coco(str(write_coco(tmp_path / "data")), split="train")
    assert source.class_names == ("kind 3", "kind 17", "kind 90")
    assert [len(source[i]["boxes"]) for i in range(5)] == [2, 0, 2, 1, 2]
    (batch,) = EvalData(source, "resize((32, 40))|pad_boxes(4)", 8)
    assert (batch["box_labels"] >= 0).sum(axis=1).tolist() == [2, 0, 2, 1, 2, 2, 2, 2]
    assert not batch["boxes"][batch["box_labels"] < 0].any()
    with pytest.raises(UserError, match=r"pad_boxes\(1\): found an image with 2 boxes"):
        EvalData(source, "pad_boxes(1)", 8)


def bad(**changes):
    return lambda found: found["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bad(bbox=[5, 5, 0, 3]), r"1 empty boxes \(annotation 1 \[5, 5, 0, 3\] of 0\.png\).*bad_boxes='drop'"),
        (bad(bbox=[30, 5, 20, 3]), r"1 boxes outside their image \(annotation 1"),
        (bad(bbox=[1, 2, 3]), "1 boxes that are not four numbers"),
        (bad(image_id=7), "1 annotations of an unknown image"),
        (bad(category_id=7), "1 annotations of an unknown category"),
        (lambda found: found["images"][0].update(file_name="x.png"), r"1 images that are not in .*train \(x\.png\)"),
        (lambda found: found["categories"].append({"id": 4, "name": "kind 3"}), "same id or name"),
        (lambda found: found.pop("images"), "no list 'images'"),
        (lambda found: found["images"][2].pop("height"), r"images\[2\] of .* without a proper 'height'"),
    ],
    ids=range(9),
)
def test_wrong_annotations_are_named_and_counted(tmp_path, change, words):
    root = write_coco(tmp_path / "data", (("train", 4),), change)
    with pytest.raises(UserError, match=words):
        Coco(str(root), split="train")


def test_bad_boxes_are_cut_at_the_border_or_dropped_where_asked(tmp_path):
    def change(found):
        found["annotations"][0]["bbox"] = [30, 5, 20, 3]
        found["annotations"][1]["bbox"] = [5, 5, 0, 3]

    source = Coco(str(write_coco(tmp_path / "data", (("train", 4),), change)), split="train", bad_boxes="drop")
    np.testing.assert_array_equal(source[0]["boxes"], [[30, 5, 40, 8]])


def test_an_image_of_another_size_than_its_annotations_say_stops_with_its_name(tmp_path):
    root = write_coco(tmp_path / "data", (("train", 4),), lambda found: found["images"][0].update(height=31))
    with pytest.raises(UserError, match=r"0\.png of 32 x 40 pixels, expected 31 x 40"):
        EvalData(Coco(str(root), split="train"), "resize(16)|pad_boxes(9)", 2)


def test_a_detector_says_what_it_needs(tmp_path):
    config = config_of(tmp_path)
    config.data.source, config.data.preprocess = {"type": "digits.Digits"}, "resize(32)"
    with pytest.raises(UserError, match=r"learns boxes with classes; found examples with 'image', 'label'"):
        build_run(config.to_dict(), tmp_path / "run")
    config = config_of(write_coco(tmp_path / "data"))
    config.task.detection_tokens = 4
    with pytest.raises(UserError, match=r"up to 5 boxes after pad_boxes.*detection_tokens=4"):
        build_run(config.to_dict(), tmp_path / "run")
    config.data.preprocess = "resize((32, 40))"
    with pytest.raises(UserError, match=r"'boxes' of .*pad_boxes\(100\)"):
        build_run(config.to_dict(), tmp_path / "run")


@pytest.mark.parametrize("seed", range(4))
def test_the_match_is_the_optimal_one(seed):
    rng = np.random.default_rng(seed)
    task = Detect(ViT(num_classes=0, width=8, depth=1, mlp_dim=8, num_heads=1, patch_size=8), detection_tokens=9)
    boxes, true = (
        np.concatenate([rng.uniform(0.2, 0.8, (n, 2)), rng.uniform(0.1, 0.4, (n, 2))], 1).astype(np.float32)
        for n in (9, 6)
    )
    logits, labels = rng.normal(size=(9, 4)).astype(np.float32), np.array([0, 2, 1, 1, -1, -1], np.int32)
    found = np.asarray(jax.jit(task.match)(*map(jnp.asarray, (logits, boxes, true, labels))))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cost = 5 * np.abs(boxes[None] - true[:4, None]).sum(-1) - probs[:, labels[:4]].T
    giou = generalized_iou(
        to_corners(jnp.asarray(np.tile(boxes[None], (4, 1, 1)))),
        to_corners(jnp.asarray(np.tile(true[:4, None], (1, 9, 1)))),
    )
    cost = cost - 2 * np.asarray(giou)
    rows, columns = linear_sum_assignment(cost)
    assert cost[np.arange(4), found[:4]].sum() == pytest.approx(cost[rows, columns].sum(), abs=1e-5)
    assert sorted(found.tolist()) == sorted(set(found.tolist()))


def test_parts_of_a_batch_have_the_loss_of_the_whole():
    task = Detect(ViT(num_classes=0, width=8, depth=1, mlp_dim=8, num_heads=1, patch_size=8), detection_tokens=6)
    rng = np.random.default_rng(0)
    labels = np.array([[0, 1, 2], [-1, -1, -1], [1, -1, -1], [2, 0, -1]], np.int32)
    boxes = np.sort(rng.uniform(0, 16, (4, 3, 2, 2)), axis=2).reshape(4, 3, 4)
    batch = {"image": jnp.asarray(rng.integers(0, 256, (4, 16, 16, 3), np.uint8)), "b": jnp.asarray(boxes, jnp.float32),
             "c": jnp.asarray(labels)}  # fmt: skip
    from vit_jax.data.source import Boxes, BoxLabels

    task = Detect(task.model, fields={"b": Boxes(), "c": BoxLabels(("x", "y", "z"))}, detection_tokens=6)
    params = jax.jit(lambda: task.init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((16, 16, 3), "uint8")}))()
    prepared = task.prepare(batch, jax.random.key(1), {})
    loss = jax.jit(lambda batch: task.loss(params, {}, batch, jax.random.key(2))[0])
    halves = [loss({key: x[i : i + 2] for key, x in prepared.items()}) for i in (0, 2)]
    assert float(loss(prepared)) == pytest.approx(float(sum(halves)) / 2, rel=1e-6)


def test_boxes_are_written_in_two_ways():
    corners = jnp.asarray(np.array([[1.0, 2.0, 5.0, 10.0]], np.float32))
    np.testing.assert_array_equal(from_corners(corners), [[3, 6, 4, 8]])
    np.testing.assert_array_equal(to_corners(from_corners(corners)), corners)


def test_other_sources_are_refused_by_the_measure():
    from vit_jax.data.sources.digits import Digits

    with pytest.raises(UserError, match=r"boxes of source type='coco\.Coco'; found Digits"):
        CocoMap(Digits("test"), "")
