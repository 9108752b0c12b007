"""Prepare datasets that `prepare` writes: a folder of images, or a TFDS dataset in another format."""

import functools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_jax.data.files import read_file
from vit_jax.data.prepare import UNREADABLE, Dataset, MakeExample, Rewrite, SplitExamples
from vit_jax.data.sources.array_records import ArrayRecords
from vit_jax.data.sources.folder import Folder, splits_of
from vit_jax.data.sources.tfds import files_of, prepared_builder
from vit_jax.data.sources.tfrecord import REMEDY, read_records
from vit_jax.types import UserError

VERSION = "1.0.0"
HOLDOUT_NOTE = (
    "no train, val and test folders: the split test is the tenth of each class that training on the folder holds out"
)


def from_folder(path: str, name: str | None, splits: Sequence[str] | None, rewrite: Rewrite) -> Dataset:
    """Return a folder's dataset, with the splits, classes and order of data.sources.folder.Folder.

    A folder without split folders has the splits of its holdout. `splits` selects some of them, by default all. Raises
    UserError for other folders, and for class names that TFDS cannot store.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.proto import dataset_info_pb2

    root = os.path.expanduser(path)
    available = splits_of(root)
    notes = [HOLDOUT_NOTE] if "all" in available else []
    sources = _sources(root, splits or [split for split in available if split != "all"], available)
    info = dataset_info_pb2.DatasetInfo(name=_dataset_name(tfds, name, root), version=VERSION, disable_shuffling=True)
    class_names = next(iter(sources.values())).class_names
    _check_class_names(root, class_names)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=class_names),
            "file_name": tfds.features.Text(),
        }
    )
    notes += [f"the split {split} has no images and is omitted" for split, source in sources.items() if not len(source)]
    examples = [
        SplitExamples(split, len(source), _folder_examples(source, root, rewrite))
        for split, source in sources.items()
        if len(source)
    ]
    return Dataset(Path(info.name, VERSION), info, examples, features.save_config, notes)


def _sources(root: str, splits: Sequence[str], available: Sequence[str]) -> dict[str, Folder]:
    """Return the images of each split; raises UserError for unknown and unreadable splits."""
    sources = {}
    for split in splits:
        if split not in available or split == "all":
            known = ", ".join(other for other in available if other != "all")
            raise UserError(f"--split={','.join(splits)} is not in {root}; choose from {known}.")
        try:
            sources[split] = Folder(root, split)
        except UserError as error:
            others = ",".join(other for other in splits if other != split)
            raise UserError(f"{error}{f' Or omit it: --split={others}' if others else ''}") from None
    if not any(map(len, sources.values())):
        raise UserError(f"--split={','.join(splits)} of {root} has no images; choose other splits.")
    return sources


def _folder_examples(source: Folder, root: str, rewrite: Rewrite) -> Iterator[tuple[str, MakeExample]]:
    for index in range(len(source)):
        path = source.name(index)
        yield (
            path,
            functools.partial(_folder_example, path, os.path.relpath(path, root), source[index]["label"], rewrite),
        )


def _folder_example(path: str, relative: str, label: int, rewrite: Rewrite) -> bytes:
    """Return a file and its label as a serialized tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    data = read_file(path)
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(rewrite(data))
    example.features.feature["label"].int64_list.value.append(label)
    example.features.feature["file_name"].bytes_list.value.append(os.fsencode(relative))
    return example.SerializeToString(deterministic=True)


def _dataset_name(tfds: Any, name: str | None, root: str) -> str:
    """Return the given name, or the folder's in lower case; raises UserError if TFDS cannot use it."""
    if name is None:
        name = re.sub(r"\W+", "_", os.path.basename(os.path.realpath(root)).lower(), flags=re.ASCII).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"{name!r} is not a valid dataset name; expected lower-case letters, digits and _, starting with a letter: give "
            "--name=NAME."
        )
    if name in tfds.list_builders(with_community_datasets=False):
        raise UserError(
            f"{name!r} is a dataset of TFDS, which would be read instead; give another, such as --name=my_{name}."
        )
    return name


def _check_class_names(root: str, names: tuple[str, ...]) -> None:
    """Raise UserError for class names that TFDS would change in its file of one stripped UTF-8 name per line."""
    for name in names:
        if name != name.strip() or "\n" in name or "\r" in name or name.encode(errors="replace").decode() != name:
            raise UserError(
                f"TFDS cannot store the name of the class folder {name!r} in {root}; expected one line of UTF-8 without "
                "spaces around it: rename it."
            )


def from_tfds(
    name: str, data_dir: str | None, splits: Sequence[str] | None, image_key: str, rewrite: Rewrite
) -> Dataset:
    """Return a TFDS dataset stored as tfrecord or array_record; only its images may change.

    If no file changes, examples are copied without decoding. Raises UserError for other datasets and unknown splits,
    and, if files change, if the feature `image_key` is not an 8-bit image.
    """
    import tensorflow_datasets as tfds

    builder = prepared_builder(tfds, name, data_dir)
    info = builder.info
    file_format = info.file_format.value
    if file_format not in ("tfrecord", "array_record") or (file_format == "array_record" and not rewrite.changes):
        raise UserError(
            f"{name!r} in {builder.data_path} is prepared as {file_format}; expected tfrecord, or array_record with "
            "--min_side or --fast_crops. array_record can be read as it is, other formats cannot be converted."
        )
    unknown = [split for split in splits or () if split not in info.splits]
    if unknown:
        raise UserError(f"--split={','.join(unknown)} is not in {name!r}; choose from {', '.join(info.splits)}.")
    features = _features_of_any_size(tfds, info.features, name, image_key) if rewrite.changes else None

    def write_metadata(folder: Path) -> None:
        for path in Path(builder.data_path).iterdir():
            if path.suffix in (".json", ".txt") and path.name != UNREADABLE:
                shutil.copyfile(path, folder / path.name)
        if features is not None:
            features.save_config(folder)

    def examples(split: str) -> Iterator[tuple[str, MakeExample]]:
        for index, record in enumerate(_records(builder, split)):
            yield f"{info.full_name}/{split}/{index}", functools.partial(_rewrite_record, record, image_key, rewrite)

    sizes = {split: info.splits[split].num_examples for split in splits or info.splits}
    proto = tfds.core.dataset_info.read_proto_from_builder_dir(builder.data_path)
    split_examples = [SplitExamples(split, size, examples(split)) for split, size in sizes.items()]
    return Dataset(Path(info.full_name), proto, split_examples, write_metadata)


def _features_of_any_size(tfds: Any, features: Any, name: str, image_key: str) -> Any:
    """Return the features with an image of any size and format."""
    image = dict(features.items()).get(image_key)
    if not isinstance(image, tfds.features.Image) or image.np_dtype != "uint8":
        raise UserError(
            f"The feature {image_key!r} of {name!r} is {image!r}; expected an 8-bit image. Set --image_key to one of its "
            f"features: {', '.join(features)}."
        )
    channels = 1 if image.shape[-1] == 1 else 3
    return tfds.features.FeaturesDict(
        {**dict(features.items()), image_key: tfds.features.Image(shape=(None, None, channels))}
    )


def _rewrite_record(record: bytes, image_key: str, rewrite: Rewrite) -> bytes:
    """Rewrite the image of a record; return the same bytes if it does not change."""
    from tensorflow_datasets.proto import tf_example_pb2

    if not rewrite.changes:
        return record
    example = tf_example_pb2.Example.FromString(record)
    values = example.features.feature[image_key].bytes_list.value
    rewritten = [rewrite(data) for data in values]
    if rewritten == list(values):
        return record
    values[:] = rewritten
    return example.SerializeToString(deterministic=True)


def _records(builder: Any, split: str) -> Iterator[bytes]:
    """Yield the records of a split in order; raises UserError for damaged and missing files."""
    info = builder.info.splits[split]
    if builder.info.file_format.value == "array_record":
        try:
            yield from ArrayRecords(files_of(builder, split))
        except RuntimeError as error:
            raise UserError(
                f"The split {split} in {builder.data_path} has a damaged or missing file ({error}). {REMEDY}"
            ) from error
        return
    for path, expected in zip(info.filepaths, info.shard_lengths, strict=True):
        count = 0
        for record in read_records(Path(path)):
            yield record
            count += 1
        if count != expected:
            raise UserError(f"{path} has {count} records; dataset_info.json states {expected}. {REMEDY}")
