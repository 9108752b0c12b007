"""What `prepare` writes: the plan of a folder of images, and that of a data set of TFDS in another format."""

import functools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_jax.data.prepare import UNREADABLE, Bound, Make, Plan, Split
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.array_records import ArrayRecords
from vit_jax.data.sources.folder import Folder, splits_of
from vit_jax.data.sources.tfds import files_of, prepared_builder
from vit_jax.data.sources.tfrecord import AGAIN, records
from vit_jax.types import UserError

VERSION = "1.0.0"
HELD_OUT = (
    "no train, val and test folders: what training on the folder holds out, a tenth of each class, is the split test"
)


def folder_plan(path: str, name: str | None, splits: Sequence[str] | None, bound: Bound) -> Plan:
    """A folder as data.folder.Folder reads it: the same splits, classes and order; without split folders its holdout.

    `splits` are some of them, all by default. Raises UserError for what is no such folder, and for names of classes
    that TFDS cannot keep.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.proto import dataset_info_pb2

    root = os.path.expanduser(path)
    found = splits_of(root)
    notes = [HELD_OUT] if "all" in found else []
    sources = _sources(root, splits or [split for split in found if split != "all"], found)
    info = dataset_info_pb2.DatasetInfo(name=_name(tfds, name, root), version=VERSION, disable_shuffling=True)
    names = next(iter(sources.values())).class_names
    _check_names(root, names)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=names),
            "file_name": tfds.features.Text(),
        }
    )
    notes += [
        f"the split {split} has no images and is left out" for split, source in sources.items() if not len(source)
    ]
    plans = [Split(split, len(source), _files(source, root, bound)) for split, source in sources.items() if len(source)]
    return Plan(Path(info.name, VERSION), info, plans, features.save_config, notes)


def _sources(root: str, splits: Sequence[str], found: Sequence[str]) -> dict[str, Folder]:
    """The images of each split; raises UserError, which says which splits there are, for one that cannot be read."""
    sources = {}
    for split in splits:
        if split not in found or split == "all":
            known = ", ".join(other for other in found if other != "all")
            raise UserError(f"Found --split={','.join(splits)} for {root}, expected some of {known}.")
        try:
            sources[split] = Folder(root, split)
        except UserError as error:
            others = ",".join(other for other in splits if other != split)
            raise UserError(f"{error}{f' Or leave it out: --split={others}' if others else ''}") from None
    if not any(map(len, sources.values())):
        raise UserError(f"Found no images in --split={','.join(splits)} of {root}, expected some: choose other splits.")
    return sources


def _files(source: Folder, root: str, bound: Bound) -> Iterator[tuple[str, Make]]:
    for index in range(len(source)):
        path = source.name(index)
        yield path, functools.partial(_example, path, os.path.relpath(path, root), source.label(index), bound)


def _example(path: str, relative: str, label: int, bound: Bound) -> bytes:
    """A file and its label as TFDS stores them."""
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(bound(data))
    example.features.feature["label"].int64_list.value.append(label)
    example.features.feature["file_name"].bytes_list.value.append(os.fsencode(relative))
    return example.SerializeToString(deterministic=True)


def _name(tfds: Any, name: str | None, root: str) -> str:
    """The name of the data set: the one given, or the folder's own in small letters."""
    own = re.sub(r"\W+", "_", os.path.basename(os.path.realpath(root)).lower(), flags=re.ASCII).strip("_")
    chosen = own if name is None else name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", chosen):
        raise UserError(
            f"Found {chosen!r} as the name of the data set, expected small letters, digits and _, a letter first: "
            "give --name=NAME."
        )
    if chosen in tfds.list_builders(with_community_datasets=False):
        raise UserError(
            f"Found {chosen!r} as the name of the data set, which is one of TFDS's own that it would read instead: "
            f"give another, such as --name=my_{chosen}."
        )
    return chosen


def _check_names(root: str, names: tuple[str, ...]) -> None:
    """TFDS keeps the names of classes as the lines of a file in UTF-8, without spaces around them."""
    for name in names:
        if name != name.strip() or "\n" in name or "\r" in name or name.encode(errors="replace").decode() != name:
            raise UserError(
                f"Found the class folder {name!r} in {root}, expected names of one line, in UTF-8, without spaces around "
                "them: rename it."
            )


def tfds_plan(name: str, data_dir: str | None, splits: Sequence[str] | None, image_key: str, bound: Bound) -> Plan:
    """A data set of TFDS in the format tfrecord or array_record, with every example as it is but for its image.

    Without a bound nothing is decoded and every byte kept. Raises UserError for what is no such data set, for unknown
    splits, and where a bound is asked for and the feature `image_key` is no image of 8 bits.
    """
    import tensorflow_datasets as tfds

    builder = prepared_builder(tfds, name, data_dir)
    info = builder.info
    source_format = info.file_format.value
    if source_format not in ("tfrecord", "array_record") or (
        source_format == "array_record" and bound.min_side is None
    ):
        raise UserError(
            f"Found {name!r} prepared as {source_format} in {builder.data_path}, expected tfrecord, or array_record and "
            "--min_side: array_record can be read as it is, other formats cannot be rewritten."
        )
    unknown = [split for split in splits or () if split not in info.splits]
    if unknown:
        raise UserError(f"Found --split={','.join(unknown)} for {name!r}, expected some of {', '.join(info.splits)}.")
    bounded = None if bound.min_side is None else _with_smaller(tfds, info.features, name, image_key)

    def describe(folder: Path) -> None:
        for path in Path(builder.data_path).iterdir():
            if path.suffix in (".json", ".txt") and path.name != UNREADABLE:
                shutil.copyfile(path, folder / path.name)
        if bounded is not None:
            bounded.save_config(folder)

    def examples(split: str) -> Iterator[tuple[str, Make]]:
        for index, record in enumerate(_records(builder, split)):
            yield f"{info.full_name}/{split}/{index}", functools.partial(_with_smaller_image, record, image_key, bound)

    sizes = {split: info.splits[split].num_examples for split in splits or info.splits}
    content = tfds.core.dataset_info.read_proto_from_builder_dir(builder.data_path)
    return Plan(
        Path(info.full_name), content, [Split(split, size, examples(split)) for split, size in sizes.items()], describe
    )


def _with_smaller(tfds: Any, features: Any, name: str, image_key: str) -> Any:
    """The features where an image may have any size and format."""
    image = dict(features.items()).get(image_key)
    if not isinstance(image, tfds.features.Image) or image.np_dtype != "uint8":
        raise UserError(
            f"Found {image!r} as the feature {image_key!r} of {name!r}, expected an image of 8 bits, one of its features "
            f"({', '.join(features)}): set --image_key."
        )
    channels = 1 if image.shape[-1] == 1 else 3
    return tfds.features.FeaturesDict(
        {**dict(features.items()), image_key: tfds.features.Image(shape=(None, None, channels))}
    )


def _with_smaller_image(record: bytes, image_key: str, bound: Bound) -> bytes:
    """A record whose image keeps to the bound, the same bytes where it did before."""
    from tensorflow_datasets.proto import tf_example_pb2

    if bound.min_side is None:
        return record
    example = tf_example_pb2.Example.FromString(record)
    values = example.features.feature[image_key].bytes_list.value
    smaller = [bound(data) for data in values]
    if smaller == list(values):
        return record
    values[:] = smaller
    return example.SerializeToString(deterministic=True)


def _records(builder: Any, split: str) -> Iterator[bytes]:
    """The records of a split in order; raises UserError where files are damaged or missing."""
    info = builder.info.splits[split]
    if builder.info.file_format.value == "array_record":
        try:
            yield from ArrayRecords(files_of(builder, split))
        except RuntimeError as error:
            raise UserError(
                f"Found a damaged or missing file of the split {split} in {builder.data_path} ({error}), expected whole "
                f"ones: {AGAIN}"
            ) from error
        return
    for path, expected in zip(info.filepaths, info.shard_lengths, strict=True):
        count = 0
        for record in records(Path(path)):
            yield record
            count += 1
        if count != expected:
            raise UserError(f"Found {count} records in {path}, expected {expected} as dataset_info.json says: {AGAIN}")
