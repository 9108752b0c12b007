"""Make several random views of one image, for objectives that compare them (multi-crop, arXiv:2006.09882)."""

from collections.abc import Callable

import numpy as np

from vit_jax.data import source
from vit_jax.data.source import Example, Fields, decoded
from vit_jax.types import Count, Threads, UserError


class Views:
    """Replace `image` by `views` [count, h, w, c] and, if there are small crops, `crops` [count, h2, w2, c]."""

    reads = ("image",)

    def __init__(self, views: list, crops: list):
        self._parts = {"views": views, "crops": crops}

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of the result; stacked views are no longer spatial."""
        rest = {key: field for key, field in fields.items() if key != "image"}
        return rest | {key: source.Field() for key, parts in self._parts.items() if parts}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        image = decoded(image)  # once for all views
        rest = {key: value for key, value in example.items() if key != "image"}
        for key, parts in self._parts.items():
            made = [part({"image": image}, rng)["image"] for part in parts]
            shapes = {one.shape for one in made}
            if len(shapes) > 1:
                raise UserError(
                    f"The {key} of an image have the shapes {sorted(shapes)}; expected one shape for all: resize them."
                )
            rest |= {key: np.stack(made)} if made else {}
        return rest


def views(views: Count, crops: Threads = 0, view: str = "", crop: str = "", last_view: str | None = None) -> Views:
    """Make `views` large and `crops` small views, each with its own spec; the last large one may have another spec.

    The draws of one view follow those of the previous one, so they are independent.
    """
    from vit_jax.data.transforms.preprocess import parse

    specs = views_of(views, crops, view, crop, last_view)
    return Views(*([parse(spec) for spec in specs[key]] for key in ("views", "crops")))


def views_of(views: int, crops: int, view: str, crop: str, last_view: str | None) -> dict[str, list[str]]:
    """Return the spec of each of the `views` and `crops`; raises ValueError for an invalid number or a missing spec."""
    if views < 1 or crops < 0:
        raise ValueError(f"expected at least 1 view and 0 crops, found {views} and {crops}")
    if crops and not crop:
        raise ValueError(f"expected a spec `crop` for {crops} crops, such as crop='inception_crop(96, 0.05, 0.4)|flip'")
    return {"views": [view] * (views - 1) + [view if last_view is None else last_view], "crops": [crop] * crops}


class Maybe:
    """Apply a spec to `image` with probability `prob`."""

    reads = ("image",)

    def __init__(self, prob: float, part: Callable[[Example, np.random.Generator], Example]):
        self._prob, self._part = prob, part

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return example | self._part({"image": example["image"]}, rng) if rng.random() < self._prob else example


def maybe(prob: float, spec: str) -> Maybe:
    """Apply a spec such as 'color_jitter(0.4)' with probability `prob`; it must keep the size of the image."""
    from vit_jax.data.transforms.preprocess import parse

    if not 0 <= prob <= 1:
        raise ValueError(f"expected prob from 0 to 1, found {prob}")
    return Maybe(prob, parse(spec))
