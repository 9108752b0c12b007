"""Compute statistics of the channels of raw images, to choose their ranges."""

import dataclasses
import os
from typing import Any

import numpy as np

from vit_jax.data import bands, files
from vit_jax.data.source import UnreadableImage
from vit_jax.types import UserError

SAMPLED = 4096  # pixels per image sampled for the percentiles
SHARES = (0.5, 99.5)  # percentiles at the two ends of a range


@dataclasses.dataclass(frozen=True)
class Channels:
    """Raw channel statistics of images, over all pixels: minimum, maximum, mean, standard deviation, and ranges.

    ranges: the percentiles SHARES of a sample of the pixels, for the argument `bands` of a source.
    """

    images: int
    least: tuple[float, ...]
    most: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ranges: tuple[bands.Range, ...]
    unreadable: dict[str, str]


def channel_statistics(folder: str, most: int) -> Channels:
    """Compute statistics of up to `most` evenly spread images in a folder; raises UserError if channels differ."""
    paths = files.find_images(folder, files.LeftOut(), (*files.ENDINGS, ".npy"))
    count = min(most, len(paths))
    chosen = [os.path.join(folder, paths[i * len(paths) // count]) for i in range(count)]
    rng, unreadable = np.random.default_rng(0), dict[str, str]()
    sampled: list[np.ndarray] = []
    sums: dict[str, Any] = {}
    pixels, first = 0, ""
    for path in chosen:
        try:
            image = bands.read_bands(files.read_file(path))
        except UnreadableImage as error:
            unreadable[path] = str(error)
            continue
        flat = np.nan_to_num(image.reshape(-1, image.shape[2]).astype(np.float64))
        if sampled and flat.shape[1] != sampled[0].shape[1]:
            raise UserError(
                f"Found {path} of {flat.shape[1]} channels and {first} of {sampled[0].shape[1]}; expected the same number in all "
                "images: sort them into folders."
            )
        first = first or path
        pixels += len(flat)
        found = {
            "least": flat.min(axis=0),
            "most": flat.max(axis=0),
            "sum": flat.sum(axis=0),
            "squares": (flat**2).sum(axis=0),
        }
        joins = {"least": np.minimum, "most": np.maximum, "sum": np.add, "squares": np.add}
        sums = {key: joins[key](sums[key], x) if key in sums else x for key, x in found.items()}
        sampled.append(flat[rng.integers(0, len(flat), SAMPLED)])
    if not sampled:
        raise UserError(
            f"Found no image in {folder} whose channels can be read{': ' * bool(unreadable)}{next(iter(unreadable.values()), '')}."
        )
    mean = sums["sum"] / pixels
    std = np.sqrt(np.maximum(sums["squares"] / pixels - mean**2, 0))
    low, high = np.percentile(np.concatenate(sampled), SHARES, axis=0)
    high = np.where(high > low, high, low + 1)
    ranges = tuple((float(f"{a:.6g}"), float(f"{b:.6g}")) for a, b in zip(low, high, strict=True))
    least, most_, mean_, std_ = (tuple(x.tolist()) for x in (sums["least"], sums["most"], mean, std))
    return Channels(len(sampled), least, most_, mean_, std_, ranges, unreadable)


def as_text(found: Channels) -> str:
    """Format the statistics as text."""
    lines = [f"{found.images:,} images of {len(found.mean)} channels"]
    lines += [
        f"channel {i}: {least:g} to {most:g}, mean {mean:.6g}, standard deviation {std:.6g}"
        for i, (least, most, mean, std) in enumerate(zip(found.least, found.most, found.mean, found.std, strict=True))
    ]
    lines += [f"unreadable: {path}: {reason}" for path, reason in list(found.unreadable.items())[:10]]
    return "\n".join([*lines, f"the middle 99 % of the pixels of each: bands={found.ranges}"])
