import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from vit_jax.data.pipeline import EvalData, TrainData
from vit_jax.data.source import Labels, UnreadableImage
from vit_jax.data.sources.tfds import Tfds
from vit_jax.types import UserError

CLASSES = ["cat", "dog", "eel"]
SIZES = {"train": 10, "test": 3}


def pixels(split, index):
    return np.full((4, 5, 3), 20 * index + (split == "test"), np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def several(index):
    """The classes of an example that has any number of them."""
    return [c for c in range(3) if index >> c & 1]


def picture(source, index):
    """The pixels of an example."""
    return source[index]["image"].decode()


def write_dataset(data_dir, name="tiny", file_format="array_record", damaged=()):
    """A data set as TFDS stores it: two JSON files and shards of serialized tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    for split, size in SIZES.items():
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for index in range(size):
            example = tf_example_pb2.Example()
            features = example.features.feature
            encoded = png(pixels(split, index))
            features["image"].bytes_list.value.append(encoded[:40] if index in damaged else encoded)
            features["label"].int64_list.value.append(index % 3)
            features["several"].int64_list.value.extend(several(index))
            features["id"].bytes_list.value.append(b"unused")
            writer.write(example.SerializeToString())
        writer.close()
    module = "tensorflow_datasets.core.features"
    feature_json = {
        "pythonClassName": f"{module}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "image": {
                    "pythonClassName": f"{module}.image_feature.Image",
                    "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
                },
                "label": {
                    "pythonClassName": f"{module}.class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": "3"},
                },
                "several": {
                    "pythonClassName": f"{module}.sequence_feature.Sequence",
                    "sequence": {
                        "feature": {
                            "pythonClassName": f"{module}.class_label_feature.ClassLabel",
                            "classLabel": {"numClasses": "3"},
                        },
                        "length": "-1",
                    },
                },
                "thumbnail": {
                    "pythonClassName": f"{module}.image_feature.Image",
                    "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
                },
                "id": {"pythonClassName": f"{module}.text_feature.Text", "text": {}},
            }
        },
    }
    (folder / "features.json").write_text(json.dumps(feature_json))
    for file in ("label.labels.txt", "several.labels.txt"):
        (folder / file).write_text("\n".join(CLASSES) + "\n")
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "shardLengths": [str(size)],
                "numBytes": "100",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, size in SIZES.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(data_dir)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("tfds"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_labels_and_names_are_those_written(data_dir, split):
    source = Tfds("tiny", split, data_dir)
    assert source.class_names == tuple(CLASSES)
    assert len(source) == SIZES[split]
    for index in range(len(source)):
        assert source[index]["label"] == index % 3
        np.testing.assert_array_equal(picture(source, index), pixels(split, index))
    assert source.name(2) == f"tiny/1.0.0/{split}/2"


def test_several_labels_are_one_or_zero_for_each_class(data_dir):
    source = Tfds("tiny", "train", data_dir, label_key="several")
    assert (source.class_names, source.fields["label"]) == (tuple(CLASSES), Labels(tuple(CLASSES)))
    for index in range(len(source)):
        assert np.flatnonzero(source[index]["label"]).tolist() == several(index)


def test_split_expression_takes_a_part(data_dir):
    source = Tfds("tiny", "train[40%:90%]", data_dir)
    assert [int(picture(source, i)[0, 0, 0]) for i in range(len(source))] == [80, 100, 120, 140, 160]


def test_evaluation_batches_come_through_the_pipeline(data_dir):
    batches = list(EvalData(Tfds("tiny", "test", data_dir), "", 2))
    assert [batch["label"].tolist() for batch in batches] == [[0, 1], [2, 0]]


def test_workers_give_the_batches_of_threads(data_dir):
    def batches(workers):
        data = TrainData(Tfds("tiny", data_dir=str(data_dir)), "inception_crop(4)", 3, seed=0, workers=workers)
        return [batch for _, batch in data.from_step(0, 6)]

    for batch, other in zip(batches(2), batches(0), strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
        np.testing.assert_array_equal(batch["label"], other["label"])


def test_one_channel_is_luma(data_dir):
    assert picture(Tfds("tiny", "train", data_dir, channels=1), 3).shape == (4, 5, 1)


def test_damaged_image_is_unreadable(tmp_path):
    source = Tfds("tiny", "test", write_dataset(tmp_path, damaged=[1]))
    assert picture(source, 0).shape == (4, 5, 3)
    with pytest.raises(UnreadableImage, match="truncated"):
        picture(source, 1)


@pytest.mark.parametrize("size", [0, 100, 70_000])
def test_file_that_is_cut_off_is_unreadable(tmp_path, size):
    write_dataset(tmp_path)
    (path,) = tmp_path.rglob("*-test.array_record-*")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UnreadableImage, match="damaged"):
        picture(Tfds("tiny", "test", str(tmp_path)), 1)


def test_example_without_an_image_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImage, match="no image"):
        Tfds("tiny", "test", write_dataset(tmp_path), image_key="thumbnail")[0]


def test_any_order_and_any_thread_give_the_same(data_dir):
    source = Tfds("tiny", "train[10%:]+test", data_dir)
    expected = [pixels("train", i) for i in range(1, 10)] + [pixels("test", i) for i in range(3)]
    order = np.random.default_rng(0).integers(0, 12, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, image in zip(order, pool.map(lambda i: picture(source, i), order), strict=True):
            np.testing.assert_array_equal(image, expected[index])


def test_reading_imports_no_tensorflow(data_dir):
    code = (
        "import sys; from vit_jax.data.sources.tfds import Tfds; assert 'tensorflow_datasets' not in sys.modules; "
        f"Tfds('tiny', 'train', {data_dir!r})[0]['image'].decode(); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_dataset_names_near_matches(tmp_path):
    with pytest.raises(UserError, match=r"'cifar11'.*did you mean cifar10"):
        Tfds("cifar11", data_dir=str(tmp_path))


def test_unprepared_dataset_says_how_to_prepare(tmp_path):
    with pytest.raises(UserError, match=r"cifar10.*pip install 'vit_jax\[tf\]'.*download_and_prepare"):
        Tfds("cifar10", data_dir=str(tmp_path))


def test_a_variable_says_where_data_sets_lie(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(Tfds("tiny", "test")) == SIZES["test"]


def test_unknown_split_names_the_splits(data_dir):
    with pytest.raises(UserError, match=r"split='vall'.*train, test"):
        Tfds("tiny", "vall", data_dir)


def test_tfrecord_dataset_asks_for_array_record(tmp_path):
    with pytest.raises(UserError, match=r"prepared as tfrecord.*array_record"):
        Tfds("tiny", "train", write_dataset(tmp_path, file_format="tfrecord"))


@pytest.mark.parametrize("key", ["image_key", "label_key"])
def test_missing_feature_lists_the_features(data_dir, key):
    with pytest.raises(UserError, match=rf"image, label.*set {key}|label, image.*set {key}|set {key}"):
        Tfds("tiny", "train", data_dir, **{key: "other"})


def test_two_splits_may_be_joined(tmp_path):
    write_dataset(tmp_path)
    assert len(Tfds("tiny", split="train+test", data_dir=str(tmp_path))) == sum(SIZES.values())


@pytest.mark.parametrize(
    "split",
    [
        "train[90%:10%]",
        "train[5:5]",
        "train[:0]",
        "train[100%:]",
        "train[:0%]",
        "train[-2:3]",
        "test+train[8:2]",
        "train[7:-5]",
    ],
)
def test_a_part_that_is_empty_or_reversed_is_refused(tmp_path, split):
    write_dataset(tmp_path)
    with pytest.raises(UserError, match=r"its part train\[\d+:\d+\] has no examples"):
        Tfds("tiny", split, str(tmp_path))


@pytest.mark.parametrize(
    ("split", "count"), [("train[-2:]", 2), ("train[10%:90%]", 8), ("test+train[:1]", 4), ("all", 13)]
)
def test_parts_with_examples_are_read(tmp_path, split, count):
    write_dataset(tmp_path)
    assert len(Tfds("tiny", split, str(tmp_path))) == count
