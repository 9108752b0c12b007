"""Open the data named on a command line: `digits`, `folder:PATH`, `table:FILE.csv`, `pairs:PATH`, ... or your own."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.config.factory import build, call, parameters, resolve
from vit_jax.data.source import IGNORED, BoxLabels, Encoded, Example, Named, Segments, Source, decoded, normalized
from vit_jax.data.sources.digits import Digits
from vit_jax.data.sources.folder import Folder, splits_of
from vit_jax.data.sources.pairs import Pairs
from vit_jax.data.sources.table import Table
from vit_jax.data.sources.tfds import Tfds
from vit_jax.types import UserError

KINDS = (
    *("digits", "folder:PATH", "table:FILE.csv", "pairs:PATH", "tfds:NAME", "segments:PATH", "coco:PATH"),
    "MODULE:SOURCE",
)

# Sources in one folder, which take their other arguments from the model's training config.
SOURCES = {"segments": "segments.SegmentFolder", "coco": "coco.Coco"}


def open_source(
    reference: str, split: str | None = None, channels: int = 3, trained_on: Mapping[str, Any] | None = None
) -> Source:
    """Open the data that a reference names; the default split is test, or all of a folder without splits.

    trained_on: the source config of the model's training. Its holdout is kept; of the training folder only the held-out
    images are evaluated, and TFDS is read from the same data_dir.
    """
    kind, _, place = reference.partition(":")
    trained_on = trained_on or {}
    if kind == "digits" and not place:
        return Digits(split or "test")
    if kind == "folder" and place:
        own = "path" in trained_on and _real(str(trained_on["path"])) == _real(place)
        order = ("test", "val", "all", "train") if own else ("all", "test", "val", "train")
        found = splits_of(place)
        holdout = {key: trained_on[key] for key in ("holdout", "split_seed", "bands") if key in trained_on}
        split = split or next(s for s in order if s in found)
        return call("data.source", Folder, {"path": place, "split": split, "channels": channels, **holdout})
    if kind == "table" and place:
        return Table(place, channels)
    if kind == "pairs" and place:
        own = "path" in trained_on and _real(str(trained_on["path"])) == _real(place)
        kept = {key: trained_on[key] for key in ("holdout", "split_seed", "image_key", "text_key") if key in trained_on}
        split = split or ("test" if own and trained_on.get("split") == "train" else "all")
        return call("data.source", Pairs, {"path": place, "split": split, "channels": channels, **kept})
    if kind == "tfds" and place:
        where = {key: trained_on[key] for key in ("data_dir", "image_key", "label_key") if key in trained_on}
        return call("data.source", Tfds, {"name": place, "split": split or "test", "channels": channels, **where})
    if kind in SOURCES and place:
        type_name = str(trained_on.get("type", ""))
        name = type_name if type_name.startswith(f"{kind}.") else SOURCES[kind]
        target = resolve(name, "vit_jax.data.sources", "--data")
        same = {key: value for key, value in trained_on.items() if key in parameters(target)}
        return call("data.source", target, same | {"path": place, "split": split or "val", "channels": channels})
    if "." in kind or (place and place.isidentifier()):
        target = resolve(reference, "vit_jax.data.sources", "--data")
        return build(
            {"type": reference, **({"split": split or "test"} if "split" in parameters(target) else {})}, "data.source"
        )
    raise UserError(f"Found the data {reference!r}, expected one of {', '.join(KINDS)}.")


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


class Relabelled(Source):
    """A source with its classes matched by name to a model's; it may lack some of them.

    Raises UserError with the classes that the model does not know.
    """

    def __init__(self, source: Source, class_names: Sequence[str]):
        class_names = normalized(class_names)
        unknown = [name for name in source.class_names if name not in class_names]
        if unknown:
            raise UserError(
                f"The model does not know {len(unknown)} of the data's {len(source.class_names)} classes: "
                f"{', '.join(map(repr, unknown[:10]))}; it knows {', '.join(map(repr, class_names[:10]))}"
                f"{', ...' if len(class_names) > 10 else ''}. Rename or remove those classes, or use another model."
            )
        self.source = source
        self._key, field = next(
            (key, field)
            for key, field in source.fields.items()
            if isinstance(field, Named) and field.class_names == source.class_names
        )
        self.fields = {**source.fields, self._key: type(field)(class_names)}
        self._labels = [self.class_names.index(name) for name in source.class_names]
        # Class maps have at most 255 classes; values beyond the data's classes, such as 255 (ignored), are unchanged.
        self._table = np.arange(max(IGNORED + 1, len(self._labels)))
        self._table[: len(self._labels)] = self._labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        label = example[self._key]
        if isinstance(self.fields[self._key], Segments):
            return {**example, self._key: _Relabelled(label, self._table.astype(np.uint8))}
        if isinstance(self.fields[self._key], BoxLabels):
            return {**example, self._key: np.where(label < 0, label, self._table[label])}
        if not isinstance(label, np.ndarray):
            return {**example, self._key: self._labels[label]}
        numbers = np.zeros(len(self.class_names), np.float32)
        numbers[self._labels] = label
        return {**example, self._key: numbers}

    def name(self, index: int) -> str:
        return self.source.name(index)


class _Relabelled(Encoded):
    """A class map, with its classes replaced through a table."""

    def __init__(self, segments: Encoded | np.ndarray, table: np.ndarray):
        self._segments, self._table = segments, table

    def decode(self) -> np.ndarray:
        return self._table[decoded(self._segments)]
