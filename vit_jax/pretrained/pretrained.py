"""Weights that others published, as ours."""

import dataclasses
from typing import Any

from vit_jax.pretrained.links import Flat
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.types import ResizeMethod


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model: the spec of its network, its weights by our names, and what its source says of its images.

    origin: what was read, for messages. notes: what the source does not say and was therefore assumed, a sentence each.
    posemb: how position embeddings of this source are resized, as its authors do.
    """

    model: dict[str, Any]
    params: Flat
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    origin: str
    posemb: ResizeMethod = "bilinear"
    notes: tuple[str, ...] = ()
