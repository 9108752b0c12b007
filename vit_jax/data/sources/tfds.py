"""Read TensorFlow Datasets through random access (array_record), without TensorFlow."""

import difflib
import functools
import os
import re
import shlex
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.data.images import ImageFile
from vit_jax.data.source import Example, Fields, Image, Label, Labels, Source, UnreadableImage
from vit_jax.data.sources.array_records import ArrayRecords
from vit_jax.types import Count, UserError

DATA_DIR = "TFDS_DATA_DIR"  # the variable that TFDS itself reads


class Tfds(Source):
    """One split of a prepared TFDS data set; `split` may be an expression such as "train[:90%]".

    `label_key` names a ClassLabel, or a Sequence of ClassLabel for several labels. The encoded images are decoded here,
    so the files must be JPEG, PNG or similar (the `Image` feature). data_dir: the folder of TFDS's data sets (by
    default TFDS_DATA_DIR, or TFDS's own default); if it is in an object store, the needed files are copied first.
    Raises UserError if the data set is unknown, was never prepared or was prepared without random access, and if the
    split or a feature is missing.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        image_key: str = "image",
        label_key: str = "label",
        channels: Count = 3,
    ):
        data_dir = os.path.expanduser(data_dir) if data_dir else default_dir()
        if data_dir is None or not stores.is_remote(data_dir):
            self._open(name, split, data_dir, None, image_key, label_key)
        else:
            copy = stores.Copy(data_dir, re.split("[/:]", name)[0])
            with stores.replace_path(copy.path, data_dir):
                copy.want([file for file in copy.found if file.endswith((".json", ".txt"))])
                self._open(name, split, str(copy.path), copy, image_key, label_key)
        self._channels = channels

    def _open(
        self, name: str, split: str, data_dir: str | None, copy: stores.Copy | None, image_key: str, label_key: str
    ) -> None:
        """Read the description of the data set and find the files of the split."""
        import tensorflow_datasets as tfds  # takes a second, so only imported when used

        builder = prepared_builder(tfds, name, data_dir)
        self.describe(tfds, builder, name, image_key, label_key)
        try:
            check_parts(builder, split)
            builder.as_data_source(split=split)  # selects array_record if there are several formats
            if builder.info.file_format.value != "array_record":
                raise NotImplementedError
            files = files_of(builder, split)
            if copy is not None:
                copy.want([os.path.relpath(path, copy.path) for path, _, _ in files])
            self._records = ArrayRecords(files)
        except NotImplementedError as error:
            raise UserError(
                f"Found {name!r} prepared as {builder.info.file_format.value} in {builder.data_path}, expected "
                f"array_record, which can be read in any order: {_how_to_rewrite(builder, name, data_dir)}"
            ) from error
        except (ValueError, KeyError) as error:
            raise UserError(
                f"Found split={split!r} for {name!r}, expected one of {', '.join(builder.info.splits)} or a part such "
                f"as train[:90%]: {error}"
            ) from error
        self._id = f"{builder.info.full_name}/{split}"
        self._image_key, self._label_key = image_key, label_key

    def describe(self, tfds: Any, builder: Any, name: str, image_key: str, label_key: str) -> None:
        """Set the fields; raises UserError if a feature is missing or of another kind."""
        names, several = _class_names(tfds, builder, name, image_key, label_key)
        self.fields: Fields = {"image": Image(), "label": Labels(names) if several else Label(names)}
        self._num_classes = len(names) if several else None

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self._id}/{index}"

    def __getitem__(self, index: int) -> Example:
        features = self.features(index)
        data = self.encoded(features, self._image_key)
        return {"image": ImageFile(lambda: data, self._channels), **self.others(index, features)}

    def features(self, index: int) -> Any:
        """Return the features of an example as protocol buffers by name; raises UnreadableImage."""
        # TFDS's own parser reads all features, which takes longer than decoding a small image.
        try:
            return _example_type().FromString(self._records[index]).features.feature
        except RuntimeError as error:
            raise UnreadableImage(f"damaged file: {error}") from error

    @staticmethod
    def encoded(features: Any, key: str) -> bytes:
        """Return the encoded image among the features of an example; raises UnreadableImage if it is missing."""
        found = features[key].bytes_list.value
        if not found:
            raise UnreadableImage(f"the example has no image {key!r}")
        return bytes(found[0])

    def others(self, index: int, features: Any) -> Example:
        """Return the fields of an example other than its image, from its tf.train.Example."""
        positions = list(features[self._label_key].int64_list.value)
        label: int | np.ndarray = positions[0] if self._num_classes is None else np.zeros(self._num_classes, np.float32)
        if isinstance(label, np.ndarray):
            label[positions] = 1.0
        return {"label": label}


def default_dir() -> str | None:
    """Return the default folder of data sets, or None for TFDS's own default."""
    return os.path.expanduser(os.environ.get(DATA_DIR, "")) or None


@functools.cache
def _example_type() -> Any:
    """Return tf.train.Example, which cannot be pickled and is therefore not stored in a source."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes, WordNet ids such as n01440764, in the order of a model's logits."""
    import tensorflow_datasets as tfds

    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())


def _how_to_prepare(name: str, data_dir: str | None) -> str:
    place = f", data_dir={data_dir!r}" if data_dir else ""
    return (
        "prepare it once, which needs TensorFlow: pip install 'vit_jax[tf]', then python -c "
        f"\"import tensorflow_datasets as tfds; tfds.builder('{name}', file_format='array_record'{place})"
        '.download_and_prepare()"'
    )


def _how_to_rewrite(builder: Any, name: str, data_dir: str | None) -> str:
    if builder.info.file_format.value != "tfrecord":
        return _how_to_prepare(name, data_dir)
    new = os.fspath(builder.data_path).removesuffix(builder.info.full_name).rstrip("/") + "_array_record"
    place = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
    return (
        "write it so, which needs no TensorFlow: python -m vit_jax prepare "
        f"--data=tfds:{shlex.quote(name)}{place} --out={shlex.quote(new)}, then read it with data_dir={new!r}, "
        f"or with {DATA_DIR}={shlex.quote(new)} and no data_dir"
    )


def files_of(builder: Any, split: str) -> list[tuple[str, int, int]]:
    """Return the files of a split of a TFDS data set, as (path, skip, take)."""
    return [(os.fspath(file.filename), file.skip, file.take) for file in builder.info.splits[split].file_instructions]


def check_parts(builder: Any, split: str) -> None:
    """Raise ValueError if a part of the split is empty or reversed, such as train[90%:10%]."""
    from tensorflow_datasets.core.splits import AbstractSplit

    for part in AbstractSplit.from_spec(split).to_absolute(builder.info.splits):
        size = builder.info.splits[part.splitname].num_examples
        first, end = part.from_ or 0, size if part.to is None else part.to
        if first >= end and (part.from_, part.to) != (None, None):
            raise ValueError(f"its part {part.splitname}[{first}:{end}] has no examples; {part.splitname} has {size:,}")


def prepared_builder(tfds: Any, name: str, data_dir: str | None) -> Any:
    """Return the data set `name` from the module `tfds`; raises UserError if it is unknown or was never prepared."""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(
            name.split("/")[0].split(":")[0], tfds.list_builders(with_community_datasets=False), n=3
        )
        advice = f"did you mean {' or '.join(near)}?" if near else "check the name and data_dir."
        raise UserError(
            f"Found no TFDS data set {name!r}, expected one that TFDS knows or that is in data_dir={data_dir!r}: "
            f"{advice}"
        ) from None
    except ValueError as error:
        raise UserError(
            f"Found {name!r}, which is not the name of a TFDS data set ({error}): check the name."
        ) from None
    if not builder.is_prepared():
        raise UserError(
            f"Found nothing in {builder.data_path}, expected the data set {name!r}: set data_dir or "
            f"{DATA_DIR} to its folder, or {_how_to_prepare(name, data_dir)}"
        )
    return builder


def image_features(tfds: Any, builder: Any, name: str, **keys: str) -> dict[str, Any]:
    """Return the features of a data set; raises UserError if one of those that `keys` name is no image."""
    features = dict(builder.info.features.items())
    for argument, key in keys.items():
        if not isinstance(features.get(key), tfds.features.Image):
            raise UserError(
                f"Found no image feature {key!r} in {name!r}, expected one of its features ({', '.join(features)}): "
                f"set {argument}."
            )
    return features


def _class_names(tfds: Any, builder: Any, name: str, image_key: str, label_key: str) -> tuple[tuple[str, ...], bool]:
    """Return the names of the classes, and whether an image can have several."""
    features = image_features(tfds, builder, name, image_key=image_key)
    label: Any = features.get(label_key)
    several = isinstance(label, tfds.features.Sequence)
    label = label.feature if several else label
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"Found no class label {label_key!r} in {name!r}, expected one of its features ({', '.join(features)}): "
            "set label_key."
        )
    return tuple(label.names), several
