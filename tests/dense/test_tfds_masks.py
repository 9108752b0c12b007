"""Masks of TFDS data sets."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.tfds_made import write
from vit_jax.data.pipeline import TrainData
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.tfds_segments import TfdsSegments
from vit_jax.types import UserError

tfds = pytest.importorskip("tensorflow_datasets")
PETS = ("pet", "ground", "border")  # oxford_iiit_pet has 1, 2, 3


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mask(index, size=(6, 8)):
    return np.random.default_rng(index).integers(1, 4, size, np.uint8)


@pytest.fixture
def data_dir(tmp_path):
    def made(examples):
        features = {"image": tfds.features.Image(), "segmentation_mask": tfds.features.Image(shape=(None, None, 1))}
        return write(tmp_path, features, examples)

    return made


def example(index, labels):
    return {"image": [png(np.repeat(mask(index)[..., None], 3, -1))], "segmentation_mask": [png(labels)]}


def test_classes_are_those_of_the_masks_written(data_dir):
    source = TfdsSegments("tiny", PETS, data_dir=data_dir([example(i, mask(i)) for i in range(3)]), values=(1, 2, 3))
    assert source.class_names == PETS
    for i in range(3):
        np.testing.assert_array_equal(source[i]["segments"].decode(), mask(i) - 1)


def test_image_and_mask_stay_aligned_in_batches(data_dir):
    source = TfdsSegments("tiny", PETS, data_dir=data_dir([example(i, mask(i)) for i in range(4)]), values=(1, 2, 3))
    ((_, batch),) = TrainData(source, "flip", 4, seed=0).from_step(0, 1)
    np.testing.assert_array_equal(batch["image"][..., 0], batch["segments"] + 1)


def test_unknown_labels_and_other_sizes_are_named_and_counted(data_dir):
    place = data_dir([example(0, mask(0)), example(1, mask(1, (6, 7))), example(2, np.full((6, 8), 7, np.uint8))])
    with pytest.raises(
        UserError, match=r"1 of another size than their image \(tiny/1.0.0/train/1 of 6 x 7.*1 with labels other than"
    ):
        TfdsSegments("tiny", PETS, data_dir=place, values=(1, 2, 3))
    with pytest.raises(UserError, match=r"labels 7: 48 pixels in tiny/1.0.0/train/2"):
        TfdsSegments("tiny", PETS, data_dir=place, values=(1, 2, 3), scan=1)[2]["segments"].decode()


def test_a_missing_feature_or_mask_is_told(data_dir):
    place = data_dir([example(0, mask(0)), {"image": example(1, mask(1))["image"]}])
    with pytest.raises(UserError, match=r"no image feature 'masks' in 'tiny'.*set mask_key"):
        TfdsSegments("tiny", PETS, data_dir=place, mask_key="masks", values=(1, 2, 3))
    with pytest.raises(UnreadableImage, match=r"no image .segmentation_mask"):
        TfdsSegments("tiny", PETS, data_dir=place, values=(1, 2, 3))[1]
