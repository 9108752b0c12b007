"""A TFDS data set on disk, as TFDS stores it: two JSON files and one shard of serialized tf.train.Example."""

import json
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter


def write(data_dir: Path, features: dict, examples: list[dict[str, list[bytes]]]) -> str:
    """Write the split "train" of a data set named "tiny" with these features of tfds.features; returns data_dir."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(str(folder / "tiny-train.array_record-00000-of-00001"), "group_size:1")
    for values in examples:
        example = tf_example_pb2.Example()
        for key, value in values.items():
            example.features.feature[key].bytes_list.value.extend(value)
        writer.write(example.SerializeToString())
    writer.close()
    tfds.features.FeaturesDict(features).save_config(str(folder))
    info = {
        "name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "moduleName": "tests",
        "splits": [
            {"name": "train", "shardLengths": [str(len(examples))], "numBytes": "1", "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
        ],
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(data_dir)
