"""Fill in a config as a run would, even if its data are not on this machine."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.config import schema
from vit_jax.config.factory import ConfigError, build, resolve
from vit_jax.data.examples import Reader
from vit_jax.data.pipeline import DataSpec, TrainData
from vit_jax.data.source import (
    Boxes,
    BoxLabels,
    Example,
    Field,
    Fields,
    Image,
    Label,
    PixelNumbers,
    Segments,
    Source,
    Text,
    class_names_of,
)
from vit_jax.data.sources.fake import Fake
from vit_jax.train import settings
from vit_jax.types import UserError

# Classes and training images of full data sets (arXiv:1409.0575; arXiv:2104.10972, with the classes of
# arXiv:2010.11929).
KNOWN = {"imagenet2012": (1000, 1_281_167), "imagenet21k": (21_843, 14_197_122)}
# Stand-ins of two sizes show whether the preprocessing always gives the same size.
SIZES = (320, 512)


class FilledIn(NamedTuple):
    """A plain training config filled in as in a run, a description of its data, and a note on what was assumed."""

    config: dict[str, Any]
    spec: DataSpec
    note: str | None


def stand_in_config(config: Mapping[str, Any], num_classes: int | None = None) -> FilledIn:
    """Fill in a training config, with made-up data if its own data cannot be opened.

    Made-up data have `num_classes` classes, or the known number for ImageNet, and the shape that the preprocessing
    gives to any image; they have as many examples as the full data set if that is known, else one per class. Raises
    UserError if the classes or the shape remain unknown.
    """
    note, config = None, schema.check(dict(config))
    try:
        sources: list[Source] = [build(config["data"].get("source"), "data.source")]
    except ConfigError:
        raise
    except UserError as error:
        sources = stand_ins(config["data"]["source"], num_classes, error)
        note = f"the data cannot be opened here; {len(sources[0].class_names)} classes are assumed."
    _, facts = settings.load_init(config["init"], None)
    filled = schema.check(settings.fill_in(config, facts, sources[0]))
    preprocess = filled["data"]["preprocess"]
    most = filled["data"].get("max_unreadable", 0.01)
    readers = [Reader(source, preprocess, 0, most, TrainData.remedy) for source in sources]
    if any(reader.layout != readers[0].layout for reader in readers):
        raise UserError(
            f"The data cannot be opened, and data.preprocess={preprocess!r} does not say how large they are."
        )
    return FilledIn(filled, DataSpec(readers[0].layout, len(sources[0]), readers[0].fields), note)


# What examples get for each kind of field, from a made-up image and its class.
MADE_UP: Mapping[type[Field], Callable[[np.ndarray, int], Any]] = {
    Image: lambda image, _: image,
    Label: lambda _, label: label,
    Segments: lambda image, _: np.zeros(image.shape[:2], np.uint8),
    PixelNumbers: lambda image, _: np.ones(image.shape[:2], np.float32),
    Boxes: lambda image, _: np.array([[0, 0, *image.shape[1::-1]]], np.float32),
    BoxLabels: lambda *_: np.zeros(1, np.int32),
    Text: lambda *_: ("a photograph",),
}


class MadeUp(Source):
    """Made-up images with the fields of another source."""

    def __init__(self, images: Source, fields: Fields):
        self._images, self.fields = images, fields

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        own = self._images[index]
        return {key: MADE_UP[type(field)](own["image"], own["label"]) for key, field in self.fields.items()}

    def name(self, index: int) -> str:
        return self._images.name(index)


def stand_ins(source: Mapping[str, Any], num_classes: int | None, error: UserError) -> list[Source]:
    """Return made-up images for a source that cannot be opened; raises UserError if its classes are unknown."""
    known, count = KNOWN.get(str(source.get("name")), (None, num_classes))
    kind = resolve(source.get("type"), "vit_jax.data.sources", "data.source")
    fields_of = getattr(kind, "fields_of", Source.fields_of)  # a function may make a source, too
    names_needed, stated = bool(class_names_of(fields_of(("a",)))), source.get("classes")
    if isinstance(stated, tuple | list):
        known, count = len(stated), count or len(stated)
    elif not names_needed:
        known, count = 1, count or 1
    classes = num_classes or known
    if classes is None or count is None:
        raise UserError(f"{error}\nOr give --num_classes, to do without the data.")
    channels = len(source.get("bands") or ()) or source.get("channels") or 3
    images = [Fake(count, size, channels, classes) for size in SIZES]
    names = tuple(map(str, stated)) if isinstance(stated, tuple | list) else images[0].class_names
    fields = fields_of(names)
    if unknown := {key: type(field).__name__ for key, field in fields.items() if type(field) not in MADE_UP}:
        raise UserError(f"{error}\nThe fields {unknown} of {source.get('type')} cannot be made up; expected the data.")
    return [MadeUp(one, fields) for one in images]
