"""The images that a config trains on, as far as shapes go, whether the data set is here or not."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.config import build, plain
from vit_jax.data.fake import Fake
from vit_jax.data.pipeline import Spec
from vit_jax.data.preprocess import parse
from vit_jax.data.source import Source
from vit_jax.data.tfds import number_of_classes
from vit_jax.train import keys
from vit_jax.types import UserError

# What stands in for a data set that is not here: as many images as ImageNet-1k has, of about their size.
EXAMPLES, SIZE = 1_281_167, 256


def settle(config: Any, num_classes: int | None = None) -> tuple[dict[str, Any], Spec, int]:
    """A config with every key checked and filled in, what its images are, and the number of steps.

    Where the data set is not here, TFDS says its number of classes, or else `num_classes` does. Raises UserError for mistakes
    in the config, and where nothing says the number of classes.
    """
    images = _source(plain(config).get("data", {}).get("source"), num_classes)
    settled, source, _, _ = keys.settle(plain(config), None, images)
    first = source.image(0)
    shape = parse(settled["data"]["preprocess"])(np.array(first), np.random.default_rng(0)).shape
    spec = Spec(shape, len(source), tuple(source.class_names), source.label_shape)
    steps = settled["steps"] or max(1, round(settled["epochs"] * len(source) / settled["batch_size"]))
    return settled, spec, steps


def _source(spec: Mapping[str, Any], num_classes: int | None) -> Source:
    """The data set, or one of made-up images in its place."""
    if num_classes is None:
        try:
            return build(spec, "data.source")
        except UserError as error:
            absent = error
        known = number_of_classes(spec) if spec.get("type") == "tfds.Tfds" else None
        if known is None:
            raise UserError(f"{absent} Without the data, --num_classes=N says what is needed of it.") from None
        num_classes = known
    channels = spec.get("channels") or 3
    return Fake(EXAMPLES, SIZE, channels, num_classes)
