"""Exported programs of pixels and boxes, compared with the model that they were made of, for one image and for several."""

import json

import jax
import numpy as np
import pytest

from tests.dense.made import CLASSES
from tests.explain.helpers import random_params
from vit_jax import inference
from vit_jax.config.factory import build_task
from vit_jax.data.photographs import crops
from vit_jax.data.source import Boxes, BoxLabels, Image, PixelNumbers, Segments
from vit_jax.export import program
from vit_jax.export.export import export

SIZE = (16, 24)
VIT = {"type": "vit.ViT", "width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 2, "patch_size": 8}
SWIN = {
    "type": "swin.Swin",
    "width": 8,
    "depths": (1, 1),
    "num_heads": (1, 2),
    "window": 2,
    "patch_size": 2,
}
SEGMENTS = {"image": Image(), "segments": Segments(CLASSES)}
KINDS = {
    "linear": (VIT, {"type": "segment.Segment", "head": {"type": "Linear"}}, SEGMENTS, "pixel_outputs"),
    "mask transformer": (
        VIT,
        {"type": "segment.Segment", "head": {"type": "MaskTransformer"}},
        SEGMENTS,
        "pixel_outputs",
    ),
    "upernet": (
        SWIN,
        {"type": "segment.Segment", "head": {"type": "UperNet", "width": 8}, "layers": (0, 1)},
        SEGMENTS,
        "pixel_outputs",
    ),
    "depth": (VIT, {"type": "depth.Depth"}, {"image": Image(), "numbers": PixelNumbers()}, "numbers"),
    "detect": (
        VIT,
        {"type": "detect.Detect", "detection_tokens": 5},
        {"image": Image(), "boxes": Boxes(), "box_labels": BoxLabels(CLASSES)},
        "boxes,box_logits",
    ),
}


def loaded(kind, **changes) -> inference.Loaded:
    """A model of random weights."""
    model, spec, fields, _ = KINDS[kind]
    model = model | changes
    shape = (*SIZE, 3)
    task = build_task(
        spec, model, class_names=CLASSES, spec={"image": jax.ShapeDtypeStruct(shape, "uint8")}, fields=fields
    )
    params = random_params(jax.eval_shape(lambda: task.init(jax.random.key(0), task.spec)))
    first = task.first_variables() if hasattr(task, "first_variables") else {}
    state = {name: first[name] for name in getattr(task, "collections", ())}
    return inference.Loaded(model, task, {"params": params, **state}, f"resize({SIZE})", shape, CLASSES, task_spec=spec)


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        pytest.param(kind, to, marks=() if kind in sample else pytest.mark.torture)
        for to, sample in (("onnx", ("detect",)), ("stablehlo", ("linear", "upernet", "depth")))
        for kind in KINDS
    ],
)
def test_what_is_predicted_is_exported(kind, to, tmp_path):
    model, names = loaded(kind), KINDS[kind][3].split(",")
    checks = export("model", model, tmp_path, to)
    (check,) = checks.values()
    assert sorted(check.differences) == sorted(names)
    # The decoder of masks normalises over classes, and divides by how little those of random weights differ.
    assert max(check.differences.values()) <= (1e-3 if kind == "mask transformer" else 1e-5)
    facts = json.loads((tmp_path / "export.json").read_text())
    _, expected = model.predictor(model.weights, {"image": crops(2, model.image_shape)}, names)
    for name in names:
        assert facts["outputs"][name] == ["batch", *expected[name].shape[1:]]
        assert np.abs(expected[name][0] - expected[name][1]).max() > 1e-3  # the image makes a difference


def test_the_head_of_a_model_in_bfloat16_is_computed_in_float32():
    model = loaded("depth", dtype="bfloat16")
    task, weights = program.plain_form(model, "float32")
    traced = str(jax.make_jaxpr(task.predict)(weights, {"image": crops(1, model.image_shape)}))
    assert "bf16" not in traced
