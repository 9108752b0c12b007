"""Show the network's input: the images of a config unchanged, and as augmented batches."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.config import schema
from vit_jax.config.factory import build, quoted
from vit_jax.data.files import MAX_LISTED
from vit_jax.data.source import IGNORED, Label, Labels, Segments, Source, Spread, UnreadableImage, decoded
from vit_jax.printable import cut, line
from vit_jax.train import settings
from vit_jax.train.build import build_data, build_parts
from vit_jax.train.step import prepared, step_keys
from vit_jax.types import UserError
from vit_jax.viz.predictions import Caption


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a data set before the transforms.

    examples: their number; scanned: the number of images tried. classes: the number of examples per class, over all.
    sizes: the number of readable images per (height, width). mean, std: per channel over all pixels, in [0, 1].
    unreadable: reasons by name. left_out: files that are not examples. pixels: per class, in the images read.
    """

    examples: int
    scanned: int
    classes: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unreadable: Mapping[str, str]
    left_out: Mapping[str, str]
    pixels: Mapping[str, int]


def statistics(source: Source, most: int) -> Statistics:
    """Compute the statistics of a source from up to `most` images, evenly spread over it."""
    if "image" not in source.fields:
        raise UserError(f"The examples have {', '.join(source.fields)}, and no image to show.")
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable: dict[str, str] = {}
    pixels = Moments()
    scanned = Spread(source, most)
    key, names = next(
        ((key, field.class_names) for key, field in source.fields.items() if isinstance(field, Segments)), (None, ())
    )
    counts = np.zeros(IGNORED + 1, np.int64)
    for index in range(len(scanned)):
        try:
            example = scanned[index]
            image = np.asarray(decoded(example["image"]))
            counts += 0 if key is None else np.bincount(decoded(example[key]).ravel(), minlength=len(counts))
        except UnreadableImage as error:
            unreadable[scanned.name(index)] = str(error)
            continue
        sizes[image.shape[0], image.shape[1]] += 1
        pixels.add(image)
    return Statistics(
        len(source), len(scanned), class_counts(source), dict(sizes.most_common()), pixels.mean, pixels.std, unreadable,
        source.left_out(), dict(zip(names, counts.tolist(), strict=False)),
    )  # fmt: skip


def balanced_weights(pixels: Mapping[str, int]) -> tuple[float, ...]:
    """Return the median class frequency over each class's, 0 for absent classes (arXiv:1411.4734, section 6.2.1)."""
    counts = np.array(list(pixels.values()), np.float64)
    there = counts[counts > 0]
    return tuple(float(f"{np.median(there) / count:.4g}") if count else 0.0 for count in counts)


class Moments:
    """Mean and standard deviation of each channel over all added pixels, in [0, 1]; () before the first."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Any = 0.0
        self._squares: Any = 0.0

    def add(self, pixels: np.ndarray) -> None:
        """Add pixels [..., c] in [0, 255]."""
        flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)
        self._count += len(flat)
        self._sums, self._squares = self._sums + flat.sum(axis=0), self._squares + np.square(flat).sum(axis=0)

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel."""
        return tuple((self._sums / self._count / 255).tolist()) if self._count else ()

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel."""
        if not self._count:
            return ()
        variance = self._squares / self._count - np.square(self._sums / self._count)
        return tuple((np.sqrt(np.maximum(variance, 0)) / 255).tolist())


def class_counts(source: Source) -> dict[str, int]:
    """Count the examples of each class among all that can be opened, without decoding images."""
    key = next((key for key, field in source.fields.items() if isinstance(field, Label | Labels)), None)
    if key is None:
        return {}
    counts = np.zeros(len(source.class_names), np.int64)
    single = isinstance(source.fields[key], Label)
    for index in range(len(source)):
        try:
            label = source[index][key]
        except UnreadableImage:
            continue
        counts += np.arange(len(counts)) == label if single else np.asarray(label, np.int64)
    return dict(zip(source.class_names, counts.tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Fed:
    """Prepared batches: captioned images [h, w, c], array descriptions by name, and channel mean and std in [0, 1]."""

    pictures: list[Caption]
    arrays: Mapping[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def feed(config: Mapping[str, Any], source: Source, batches: int, most: int) -> Fed:
    """Return the first batches as the loss reads them: augmented, mixed if the task mixes; up to `most` pictures."""
    config = {**config, "data": {**config["data"], "max_unreadable": 1.0, "workers": 0}}
    data = build_data(config, source)
    parts = build_parts(config, data.spec, data)
    pictures: list[Caption] = []
    arrays: dict[str, str] = {}
    pixels = Moments()
    for step, batch in data.from_step(0, batches):
        key, _ = step_keys(config["seed"], step)
        made = jax.device_get(prepared(parts.task, parts.fetch, parts.constants, jax.device_put(batch), key))
        arrays = {name: f"{x.dtype} {'x'.join(map(str, x.shape))}" for name, x in made.items()}
        # Large ones first.
        shown = sorted((name for name in made if is_pictures(made[name])), key=lambda name: -made[name].shape[-2])
        for name in shown:
            if name == "image" or "image" not in made:
                pixels.add(made[name])
        for row, name in itertools.product(range(len(next(iter(made.values())))), shown):
            caption = caption_of(made, row, parts.task.class_names) if name == "image" else name
            several = made[name][row].reshape(-1, *made[name].shape[-3:])
            pictures += [Caption(one.round().clip(0, 255).astype(np.uint8), caption) for one in several]
    return Fed(pictures[:most], arrays, pixels.mean, pixels.std)


def is_pictures(array: Any) -> bool:
    """Return whether an array holds images [b, h, w, c], or several per example [b, views, h, w, c]."""
    return getattr(array, "ndim", 0) in (4, 5) and array.shape[-1] in (1, 3) and array.dtype in (np.uint8, np.float32)


def caption_of(batch: Mapping[str, Any], row: int, names: tuple[str, ...]) -> str:
    """Return the class of an example, or its largest classes or numbers with their values."""
    for key in ("target", "label"):
        if key not in batch:
            continue
        value = np.asarray(batch[key][row])
        if value.ndim == 0 and names:
            return line(names[int(value)])
        if value.ndim == 1 and len(value) == len(names):
            best = [i for i in np.argsort(-value, kind="stable")[:2] if value[i] > max(0.1, value.max() / 20)]
            return "\n".join(f"{cut(names[i], 14)} {value[i]:.2f}" for i in best)
    return ""


def open_config(config: dict[str, Any]) -> tuple[dict[str, Any], Source]:
    """Return a training config with defaults filled in as in a run, and its training data."""
    config = schema.check(config)
    source: Source = build(config["data"].get("source"), "data.source")
    _, facts = settings.load_init(config["init"], None)
    return schema.check(settings.fill_in(config, facts, source)), source


def as_text(found: Statistics) -> str:
    """Format the statistics as text; long lists are truncated."""
    counts = sorted(found.classes.items(), key=lambda item: -item[1])
    heights, widths = (np.repeat([size[axis] for size in found.sizes], list(found.sizes.values())) for axis in (0, 1))
    lines = [
        f"{found.examples:,} examples"
        + (f", {found.scanned:,} of which were read" if found.scanned < found.examples else "")
    ]
    if counts:
        shown = counts if len(counts) <= 12 else [*counts[:6], *counts[-6:]]
        dots = " (the most and the least frequent)" if len(counts) > 12 else ""
        lines.append(
            f"{len(counts):,} classes{dots}: " + ", ".join(f"{quoted(name, 40)} {count:,}" for name, count in shown)
        )
    if found.pixels:
        total = max(1, sum(found.pixels.values()))
        shares = ", ".join(f"{quoted(name, 40)} {count / total:.2%}" for name, count in list(found.pixels.items())[:20])
        lines.append(f"pixels of each class: {shares}; balanced: task.class_weights={balanced_weights(found.pixels)}")
    if found.sizes:
        for name, values in (("height", heights), ("width", widths)):
            lines.append(f"{name}: {values.min():,} to {values.max():,} pixels, median {np.median(values):,.0f}")
        common = ", ".join(f"{h} x {w} ({count:,})" for (h, w), count in list(found.sizes.items())[:5])
        lines.append(f"most frequent sizes, height x width: {common}")
        lines.append(f"mean of each channel {numbers(found.mean)}, standard deviation {numbers(found.std)}, of [0, 1]")
    for what, files in (("unreadable", found.unreadable), ("left out", found.left_out)):
        more = " or more" if files is found.left_out and len(files) == MAX_LISTED else ""
        lines.append(f"{what}: {len(files):,}{more} files" + (", for example" if len(files) > 10 else ""))
        lines += [f"  {line(f'{name}: {reason}')}" for name, reason in list(files.items())[:10]]
    return "\n".join(lines)


def numbers(values: tuple[float, ...]) -> str:
    """Format numbers in config syntax."""
    return "(" + ", ".join(f"{x:.4f}" for x in values) + ")"


def as_dict(found: Statistics, fed: Fed | None) -> dict[str, Any]:
    """Return the statistics as JSON-ready data."""
    facts = dataclasses.asdict(found) | {"sizes": [[*size, count] for size, count in found.sizes.items()]}
    return facts | ({} if fed is None else {"fed": {"arrays": dict(fed.arrays), "mean": fed.mean, "std": fed.std}})
