"""What the data of a run look like, also where they are not on this machine."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.config.factory import ConfigError, build, steps_of
from vit_jax.data.pipeline import Spec
from vit_jax.data.reader import Reader
from vit_jax.data.source import Source
from vit_jax.data.sources.fake import Fake
from vit_jax.train import keys
from vit_jax.types import UserError

# Classes and training images of whole data sets (arXiv:1409.0575; arXiv:2104.10972, with the classes of arXiv:2010.11929).
KNOWN = {"imagenet2012": (1000, 1_281_167), "imagenet21k": (21_843, 14_197_122)}
# Stand-ins of two sizes show whether the preprocessing gives images of one size.
SIZES = (320, 512)


class Settled(NamedTuple):
    """A plain training config filled in as a run would, the spec of its data, its steps, and what was assumed of the data."""

    config: dict[str, Any]
    spec: Spec
    steps: int
    note: str | None


def settle(config: Mapping[str, Any], num_classes: int | None = None) -> Settled:
    """What a training run would make of its config, also where its data are not on this machine.

    Where the data cannot be opened they have `num_classes` classes, or as many as ImageNet has where they are that, and the
    shape that the preprocessing gives to any image. The number of examples is then that of the whole data set, or one of each
    class where it is not known. Raises UserError where the classes or the shape stay unknown.
    """
    note = None
    try:
        sources: list[Source] = [build(config["data"].get("source"), "data.source")]
    except ConfigError:
        raise
    except UserError as error:
        sources = stand_ins(config["data"]["source"], num_classes, error)
        note = f"the data cannot be opened here; {len(sources[0].class_names)} classes are assumed."
    filled, *_ = keys.settle(dict(config), None, sources[0])
    preprocess = filled["data"]["preprocess"]
    found = {
        Reader(source, preprocess, 0, filled["data"].get("max_unreadable", 0.01)).image_shape for source in sources
    }
    if len(found) > 1:
        raise UserError(
            f"The data cannot be opened, and data.preprocess={preprocess!r} does not say how large they are."
        )
    first = sources[0]
    spec = Spec(found.pop(), len(first), tuple(first.class_names), first.label_shape)
    return Settled(filled, spec, steps_of(filled, len(first)), note)


def stand_ins(source: Mapping[str, Any], num_classes: int | None, error: UserError) -> list[Source]:
    """Made-up images in place of a source that cannot be opened; raises UserError where their classes are not known."""
    known, count = KNOWN.get(str(source.get("name")), (None, num_classes))
    classes = num_classes or known
    if classes is None or count is None:
        raise UserError(f"{error}\nOr give --num_classes, to do without the data.")
    return [Fake(count, size, source.get("channels") or 3, classes) for size in SIZES]
