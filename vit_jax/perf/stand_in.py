"""What a run would make of its config, also where its data are not on this machine."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.config import schema
from vit_jax.config.factory import ConfigError, build
from vit_jax.data.examples import Reader
from vit_jax.data.pipeline import DataSpec, TrainData
from vit_jax.data.source import Source
from vit_jax.data.sources.fake import Fake
from vit_jax.train import settings
from vit_jax.types import UserError

# Classes and training images of whole data sets (arXiv:1409.0575; arXiv:2104.10972, with the classes of arXiv:2010.11929).
KNOWN = {"imagenet2012": (1000, 1_281_167), "imagenet21k": (21_843, 14_197_122)}
# Stand-ins of two sizes show whether the preprocessing gives images of one size.
SIZES = (320, 512)


class FilledIn(NamedTuple):
    """A plain training config filled in as a run would, what its data look like, and a note on what was assumed of them."""

    config: dict[str, Any]
    spec: DataSpec
    note: str | None


def stand_in_config(config: Mapping[str, Any], num_classes: int | None = None) -> FilledIn:
    """Return a training config filled in, with made-up data where its own cannot be opened.

    Those have `num_classes` classes, or as many as ImageNet where they are ImageNet, and the shape that the preprocessing gives
    to any image; as many examples as the whole data set has where that is known, or one of each class. Raises UserError where the
    classes or the shape remain unknown.
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


def stand_ins(source: Mapping[str, Any], num_classes: int | None, error: UserError) -> list[Source]:
    """Return made-up images in place of a source that cannot be opened; raises UserError where its classes are unknown."""
    known, count = KNOWN.get(str(source.get("name")), (None, num_classes))
    classes = num_classes or known
    if classes is None or count is None:
        raise UserError(f"{error}\nOr give --num_classes, to do without the data.")
    return [Fake(count, size, source.get("channels") or 3, classes) for size in SIZES]
