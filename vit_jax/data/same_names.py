"""Pair images with maps of their pixels by file name, and report which files do not match."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vit_jax import stores
from vit_jax.data import files
from vit_jax.data.source import UnreadableImage
from vit_jax.printable import line
from vit_jax.types import UserError

MOST_NAMED = 5  # files of one kind listed in a message


class Pair(NamedTuple):
    """The paths of an image and of its pixel map."""

    image: str
    map: str


def named(kind: str, found: Sequence[str]) -> str:
    """Return the number of files of a kind, followed by the first few."""
    more = ", ..." if len(found) > MOST_NAMED else ""
    return f"{len(found):,} {kind} ({', '.join(map(line, found[:MOST_NAMED]))}{more})"


def find_pairs(
    root: str, images: str, maps: str, image_suffix: str, map_suffix: str, names: str | None, endings: tuple[str, ...]
) -> list[Pair]:
    """Return the pairs of two folders below `root`, sorted by name: the path without suffix and ending.

    names: a file that lists the names to use, one per line; without it every file must have a partner. Raises UserError
    with the number and names of the files without one.
    """
    found = [
        _by_name(stores.join(root, folder), suffix, ends)
        for folder, suffix, ends in ((images, image_suffix, files.ENDINGS), (maps, map_suffix, endings))
    ]
    wanted = sorted(found[0].keys() | found[1].keys()) if names is None else files.read_lines(stores.join(root, names))
    missing = [[name for name in wanted if name not in kind] for kind in found]
    if any(missing):
        counts = [
            named(f"without {what}", some) for what, some in zip(("an image", "a mask"), missing, strict=True) if some
        ]
        listed = f"the names of {names}" if names else f"{images} and {maps}"
        raise UserError(
            f"Found among {listed} in {root}: {'; '.join(counts)}; expected an image and a mask of each name: add or remove "
            "files, list the names to use in a file `names`, or set image_suffix and mask_suffix to what follows the name."
        )
    if not wanted:
        raise UserError(
            f"Found no images in {stores.join(root, images)}; check the path, the split and the names of the folders."
        )
    return [Pair(found[0][name], found[1][name]) for name in wanted]


def _by_name(folder: str, suffix: str, endings: tuple[str, ...]) -> dict[str, str]:
    """Map the names that pairs share to the paths of a folder's files."""
    left_out = files.LeftOut()
    paths: dict[str, str] = {}
    for path in files.find_images(folder, left_out, endings):
        stem, ending = os.path.splitext(path)
        if not stem.endswith(suffix):
            left_out.add(stores.join(folder, path), f"not named *{suffix}{ending}")
            continue
        name = stem.removesuffix(suffix)
        if name in paths:
            raise UserError(
                f"Found two files {name!r} in {folder}, {paths[name]} and {path}; expected one: remove the other."
            )
        paths[name] = stores.join(folder, path)
    files.report(folder, left_out)
    return paths


class Look(NamedTuple):
    """What a look at a map found: its place and shape, the size of its image, and the pixel count of each unknown label."""

    place: str
    shape: tuple[int, ...]
    image: tuple[int, int]
    unknown: Mapping[int, int]


def check_maps(length: int, most: int, look: Callable[[int], Look], known: str) -> None:
    """Check at most `most` of the maps of `length` examples, spread evenly; raises UserError that counts and names the problems.

    known: the labels that a map may have, for the message. Unreadable files are left to the example reader, which counts
    them.
    """
    count = min(most, length)

    def problem(index: int) -> tuple[str, str] | None:
        try:
            place, size, image, unknown = look(index)
        except UnreadableImage:
            return None
        if size != image:
            return "size", f"{place} of {size[0]} x {size[1]}, its image of {image[0]} x {image[1]}"
        if unknown:
            labels = ", ".join(f"{label}: {pixels:,} pixels" for label, pixels in list(unknown.items())[:MOST_NAMED])
            return "label", f"{place} with {labels}"
        return None

    with ThreadPoolExecutor(stores.THREADS) as pool:
        chosen = (index * length // count for index in range(count))
        problems = [found for found in pool.map(problem, chosen) if found is not None]
    sizes, labels = ([text for kind, text in problems if kind == wanted] for wanted in ("size", "label"))
    parts = [named("of another size than their image", sizes)] * bool(sizes)
    parts += [named(f"with labels other than {known}", labels)] * bool(labels)
    if parts:
        raise UserError(
            f"Found among {count:,} masks {'; '.join(parts)}: repair them, or name the labels in `values` or `ignore` of the "
            "source."
        )
