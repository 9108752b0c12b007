"""What vit convert writes for models other than float32 classifiers, and the notes that it prints."""

import dataclasses

import numpy as np
import pytest

from tests.dense.test_export import loaded as dense
from tests.explain.helpers import images, network
from vit_jax import inference
from vit_jax.cli import convert
from vit_jax.types import UserError


def converted(loaded, out, to):
    """The model as the format has it, the copy that was read back, and the notes."""
    loaded = dataclasses.replace(loaded, spec={**loaded.spec, "num_classes": len(loaded.class_names)})
    loaded, notes = convert.for_classifiers(loaded, to)
    notes += convert.write(loaded, out, to)
    assert convert.check(loaded, out, to)
    return loaded, inference.load(out), notes


@pytest.mark.parametrize("to", ["npz", "timm", "hf"])
def test_a_model_in_bfloat16_is_compared_in_float32(to, tmp_path):
    model = network(dtype="bfloat16").loaded
    converted(model, tmp_path / "model.npz" if to == "npz" else tmp_path / "model", to)


def test_the_npz_of_a_model_without_labels_is_its_encoder(tmp_path):
    original, copy, _ = converted(network(classes=(), task="mae.Mae").loaded, tmp_path / "model.npz", "npz")
    assert copy.arrays.keys() == original.arrays.keys()


@pytest.mark.parametrize("kind", ["linear", "depth", "detect"])
def test_of_a_dense_model_timm_gets_the_encoder(kind, tmp_path):
    _, copy, notes = converted(dense(kind), tmp_path / "model", "timm")
    assert copy.spec["num_classes"] == 0
    assert any("Only its image encoder" in note for note in notes)


def test_an_npz_of_patches_in_no_square_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(UserError, match=r"expect a square grid of patches; found 6"):
        converted(dense("depth"), tmp_path / "model.npz", "npz")
    assert not (tmp_path / "model.npz").exists()


def test_the_logits_of_a_converted_regression_are_its_numbers(tmp_path):
    model = network(classes=("width", "height"), task="regress.Regress").loaded
    task = dataclasses.replace(model.task, target_mean=(5.0, -1.0), target_std=(2.0, 0.5))
    model = dataclasses.replace(model, task=task)
    _, copy, notes = converted(model, tmp_path / "model", "timm")
    np.testing.assert_allclose(copy(images())["logits"], model(images())["values"], rtol=1e-4, atol=1e-4)
    assert any("are numbers (width, height), not logits" in note for note in notes)


def test_that_classes_do_not_exclude_each_other_is_said(tmp_path):
    model = network().loaded
    model = dataclasses.replace(model, task=dataclasses.replace(model.task, loss_name="bce"))
    assert any("sigmoid" in note for note in converted(model, tmp_path / "model", "timm")[2])
