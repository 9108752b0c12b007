"""Load images with labelled pixels: class masks, or maps of numbers such as depth, in files of the same names."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Integer, UInt8

from vit_jax import stores
from vit_jax.data import files
from vit_jax.data.bands import Range, check_ranges, image_file
from vit_jax.data.decode import decode_labels, decode_numbers, size_of
from vit_jax.data.same_names import MOST_NAMED, Look, Pair, check_maps, find_pairs
from vit_jax.data.source import IGNORED, Encoded, Example, Fields, Image, PixelNumbers, Segments, Source
from vit_jax.printable import line
from vit_jax.types import Count, Steps, UserError

# A label in a mask file: a number, or the colour (r, g, b).
Code = int | tuple[int, int, int]
UNKNOWN = IGNORED + 1
DEEPEST = 2**16  # number of possible values in a mask without colours


def as_number(code: Code) -> int:
    """Return a label in the form that decode_labels returns."""
    return code if isinstance(code, int) else (code[0] << 16) + (code[1] << 8) + code[2]


class Codes:
    """Maps the labels in mask files to positions in the class names.

    values: the label of each class, by default 0, 1, 2, ...; ignore: labels that become 255, by default 255 unless it
    is a class.
    """

    def __init__(self, class_names: Sequence[str], values: Sequence[Code] | None, ignore: Sequence[Code] | None):
        self.class_names, classes = tuple(class_names), len(class_names)
        if not 1 <= classes <= IGNORED or len(set(class_names)) < classes:
            raise UserError(
                f"Found {classes} classes, {len(set(class_names))} of them different; expected 1 to {IGNORED}, each once."
            )
        values = tuple(range(classes)) if values is None else tuple(values)
        ignore = tuple(ignore) if ignore is not None else () if IGNORED in values else (IGNORED,)
        if len(values) != classes:
            raise UserError(f"Found {len(values)} labels in `values` for {classes} classes; expected one for each.")
        pairs = [
            *((as_number(code), i) for i, code in enumerate(values)),
            *((as_number(code), IGNORED) for code in ignore),
        ]
        numbers = [number for number, _ in pairs]
        both = sorted({code for code in values if as_number(code) in numbers[classes:]}, key=str)
        if both or len(set(numbers[:classes])) < classes:
            what = f"{both[0]} in both `values` and `ignore`" if both else "one label of two classes in `values`"
            raise UserError(f"Found {what}; expected each label once.")
        if min(numbers) < 0 or max(numbers) >= 2**24:
            raise UserError("Found a label below 0 or of more than 24 bits in `values` or `ignore`; correct it.")
        order = np.argsort(numbers)
        self._numbers = np.array(numbers, np.int64)[order]
        self._positions = np.array([position for _, position in pairs], np.uint16)[order]
        self._table = np.full(DEEPEST, UNKNOWN, np.uint16)
        small = self._numbers < DEEPEST
        self._table[self._numbers[small]] = self._positions[small]
        self.words = (
            f"{len(values)} classes ({', '.join(map(str, values[:MOST_NAMED]))}{', ...' * (classes > MOST_NAMED)})"
            + (f" and {len(ignore)} ignored" if ignore else "")
        )

    def __call__(self, labels: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
        """Return the class of each pixel, UNKNOWN for other labels."""
        if labels.dtype.itemsize <= 2 and labels.dtype.kind == "u":
            return self._table[labels]
        at = np.searchsorted(self._numbers, labels).clip(max=len(self._numbers) - 1)
        return np.where(self._numbers[at] == labels, self._positions[at], UNKNOWN).astype(np.uint16)

    def unknown(self, labels: Integer[np.ndarray, "h w"]) -> dict[int, int]:
        """Return the pixel count of each label that is not among the codes."""
        found, counts = np.unique(labels[self(labels) == UNKNOWN], return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))


class Mask(Encoded):
    """An encoded mask that decodes to the class of each pixel; `place` is its path or name, for messages."""

    def __init__(self, read: Callable[[], bytes], place: str, codes: Codes):
        self._read, self._place, self._codes = read, place, codes

    def decode(self) -> UInt8[np.ndarray, "h w"]:
        """See Encoded; raises UserError for a label that is not among the codes."""
        labels = decode_labels(self._read())
        classes = self._codes(labels)
        if classes.size and classes.max() == UNKNOWN:
            found = ", ".join(
                f"{label}: {count:,} pixels" for label, count in list(self._codes.unknown(labels).items())[:5]
            )
            raise UserError(
                f"Found the labels {found} in {line(self._place)}; expected {self._codes.words}: repair the mask, or name them in "
                "`values` or `ignore` of the source."
            )
        return classes.astype(np.uint8)


class NumbersFile(Encoded):
    """A file with one number for each pixel, in units of 1 / scale; numbers in `unknown` decode to NaN."""

    def __init__(self, path: str, scale: float, unknown: tuple[float, ...]):
        self._path, self._scale, self._unknown = path, scale, unknown

    def decode(self) -> Float32[np.ndarray, "h w"]:
        """See Encoded."""
        raw = decode_numbers(files.read_file(self._path))
        known = np.isfinite(raw) & ~np.isin(raw, self._unknown)
        return np.where(known, raw / np.float32(self._scale), np.float32(np.nan)).astype(np.float32)


class _Pairs(Source):
    """The base of masks and number maps: images paired with maps by name, below one folder."""

    def __init__(self, pairs: list[Pair], channels: int, bands: tuple[Range, ...] | None):
        self.pairs, self._channels, self._bands = pairs, channels, bands
        if bands is not None:
            check_ranges(bands)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return self.pairs[index].image

    def _looked(self, index: int, found: np.ndarray, unknown: Mapping[int, int]) -> Look:
        pair = self.pairs[index]
        return Look(pair.map, found.shape, size_of(files.read_file(pair.image)), unknown)

    def _image(self, index: int) -> Encoded:
        return image_file(functools.partial(files.read_file, self.pairs[index].image), self._channels, self._bands)


class SegmentFolder(_Pairs):
    """Images with masks: `images` and `masks` are folders below `path`; {split} is replaced by the split.

    An image and its mask have the same path below these folders, apart from image_suffix, mask_suffix and the ending.
    names: a file below `path` that lists the names to use, such as VOC's ImageSets/Segmentation/{split}.txt; without it
    every image has a mask and every mask an image. classes: the names of the classes, or a file below `path` with one
    per line. values: the label of each class in the masks, in the same order, by default 0, 1, 2, ...: palette indices,
    grey levels of 8 or 16 bits, or colours (r, g, b). ignore: labels that are not learned or measured, by default 255
    unless it is a class. At most `scan` masks, evenly spread, are read at the start, so that unknown labels, and masks
    of another size than their image, are found before training. bands: see folder.Folder.
    """

    def __init__(
        self,
        path: str,
        classes: tuple[str, ...] | str = "classes.txt",
        split: str = "train",
        images: str = "images/{split}",
        masks: str = "masks/{split}",
        image_suffix: str = "",
        mask_suffix: str = "",
        names: str | None = None,
        values: tuple[Code, ...] | None = None,
        ignore: tuple[Code, ...] | None = None,
        scan: Steps = 2000,
        channels: Count = 3,
        bands: tuple[Range, ...] | None = None,
    ):
        root = os.path.expanduser(path)
        names_of_classes = files.read_lines(stores.join(root, classes)) if isinstance(classes, str) else classes
        codes = self._codes = Codes(names_of_classes, values, ignore)
        of_images, of_masks, listed = (text.replace("{split}", split) for text in (images, masks, names or ""))
        pairs = find_pairs(root, of_images, of_masks, image_suffix, mask_suffix, listed or None, files.ENDINGS)
        super().__init__(pairs, channels, bands)
        self.fields = self.fields_of(codes.class_names)
        check_maps(len(pairs), scan, self._look, codes.words)

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """See Source."""
        return {"image": Image(), "segments": Segments(class_names)}

    def _look(self, index: int) -> Look:
        labels = decode_labels(files.read_file(self.pairs[index].map))
        return self._looked(index, labels, self._codes.unknown(labels))

    def __getitem__(self, index: int) -> Example:
        path = self.pairs[index].map
        mask = Mask(functools.partial(files.read_file, path), path, self._codes)
        return {"image": self._image(index), "segments": mask}


class NumbersFolder(_Pairs):
    """Images with a number for each pixel, such as its depth, in .npy files or grey images of up to 32 bits.

    Folders, suffixes, names and bands are as in SegmentFolder. A number in a file is divided by `scale`, for example
    1000 for depth in millimetres; pixels with a number in `unknown`, or NaN, are not learned or measured.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        images: str = "images/{split}",
        maps: str = "depth/{split}",
        image_suffix: str = "",
        map_suffix: str = "",
        names: str | None = None,
        scale: float = 1.0,
        unknown: tuple[float, ...] = (0.0,),
        scan: Steps = 2000,
        channels: Count = 3,
        bands: tuple[Range, ...] | None = None,
    ):
        if scale <= 0:
            raise UserError(
                f"Found scale={scale}, expected a number above 0: give the units of a file in one of yours."
            )
        root = os.path.expanduser(path)
        of_images, of_maps, listed = (text.replace("{split}", split) for text in (images, maps, names or ""))
        endings = (*files.ENDINGS, ".npy")
        super().__init__(
            find_pairs(root, of_images, of_maps, image_suffix, map_suffix, listed or None, endings), channels, bands
        )
        self._scale, self._unknown = scale, unknown
        self.fields = self.fields_of(())
        check_maps(len(self.pairs), scan, self._look, "numbers")

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """See Source."""
        return {"image": Image(), "numbers": PixelNumbers()}

    def _look(self, index: int) -> Look:
        return self._looked(index, decode_numbers(files.read_file(self.pairs[index].map)), {})

    def __getitem__(self, index: int) -> Example:
        return {"image": self._image(index), "numbers": NumbersFile(self.pairs[index].map, self._scale, self._unknown)}
