"""Load images from class folders: root/class/*.jpg, or root/{train,val,test}/class/*.jpg, the layout of ImageNet."""

import collections
import functools
import hashlib
import os
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax import stores
from vit_jax.data import files
from vit_jax.data.bands import Range, check_ranges, image_file
from vit_jax.data.source import Example, Image, Label, Source, normalized
from vit_jax.printable import line
from vit_jax.types import Count, Seed, UserError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Folder(Source):
    """The images of one split of a folder, sorted; class names are the sorted folder names, in composed Unicode.

    With train/val/test sub-folders (any case; valid and validation mean val) `split` selects one of them; val and test
    may lack classes of train and have its class names. Otherwise each class is split into "train" and "test" by
    `holdout` and `split_seed`, and "all" is every file. Files may be nested at any depth inside a class folder; files
    that are left out are logged. The folder may be in an object store. bands: for images with many channels or deep
    samples, the (low, high) of each channel that become 0 and 255; see data/bands.py.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        holdout: float = 0.1,
        split_seed: Seed = 0,
        channels: Count = 3,
        bands: tuple[Range, ...] | None = None,
    ):
        self._root, self._channels, self._bands = os.path.expanduser(path), channels, bands
        if bands is not None:
            check_ranges(bands)
        split_folders, known = _split_folders(self._root), frozenset[str]()
        if split_folders:
            self._root, known = _choose_split(self._root, split_folders, split)
        elif split not in ("train", "test", "all"):
            raise UserError(
                f"Found split={split!r} for {self._root}, which has no train/val/test sub-folders: "
                "choose 'train' or 'test' (a seeded holdout of each class) or 'all'."
            )
        elif not 0 < holdout < 1:
            raise UserError(f"Found holdout={holdout}, expected a share between 0 and 1: choose one such as 0.1.")
        images, left_out = _class_images(self._root, known)
        self._left_out = left_out.files
        if not split_folders and split != "all":
            images = {name: _holdout(paths, split, holdout, split_seed) for name, paths in images.items()}
        self.fields = {"image": Image(), "label": Label(tuple(images))}
        self._paths = [path for paths in images.values() for path in paths]
        self._labels = np.repeat(np.arange(len(images)), [len(paths) for paths in images.values()])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        image = image_file(functools.partial(files.read_file, self.name(index)), self._channels, self._bands)
        return {"image": image, "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])

    def left_out(self) -> dict[str, str]:
        return self._left_out


def _subfolders(path: str) -> list[str]:
    """Return the sorted names of the folders in `path`; raises UserError if it is not a readable folder."""
    return _children(path)[0]


def _children(path: str, left_out: files.LeftOut | None = None) -> tuple[list[str], list[str]]:
    try:
        return files.children(path, left_out)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", error)
        raise UserError(
            f"Found no readable folder at {path!r} ({reason}), expected one with a sub-folder for each class: "
            "check the path and its permissions."
        ) from error


def splits_of(path: str) -> tuple[str, ...]:
    """Return the split sub-folders of a folder, or the parts of a holdout; raises UserError if it is no folder."""
    root = os.path.expanduser(path)
    return tuple(_split_folders(root)) or ("train", "test", "all")


def _split_folders(root: str) -> dict[str, str]:
    """Map train, val, test to their sub-folders; empty if `root` contains class folders.

    A folder named "train" that contains images itself is a class (of vehicles, say), not a split.
    """
    named = [name for name in _subfolders(root) if name.lower() in SPLIT_FOLDERS]
    found = [_children(os.path.join(root, name)) for name in named]
    if not any(folders and not any(map(files.is_image, names)) for folders, names in found):
        return {}
    splits: dict[str, str] = {}
    for name in named:
        split = SPLIT_FOLDERS[name.lower()]
        if split in splits:
            raise UserError(
                f"Found both {splits[split]!r} and {name!r} in {root}, expected one {split} folder: "
                "rename or remove one."
            )
        splits[split] = name
    return splits


def _choose_split(root: str, split_folders: dict[str, str], split: str) -> tuple[str, frozenset[str]]:
    """Return the path of the requested split and the classes of the training images, after checking that it has no others."""
    wanted = SPLIT_FOLDERS.get(split.lower())
    if wanted not in split_folders:
        found = ", ".join(sorted(split_folders))
        advice = "use split=val" if wanted == "test" and "val" in split_folders else f"use one of: {found}"
        raise UserError(f"Found the splits {found} in {root}, expected {split!r} among them: {advice}.")
    classes = {name: frozenset(normalized(_subfolders(os.path.join(root, name)))) for name in split_folders.values()}
    train = classes.get(split_folders.get("train", ""), frozenset())
    for name, others in classes.items():
        if train and others - train:
            raise UserError(
                f"Found different classes in {root}: only in {split_folders['train']}: {_some(train - others)}; only in {name}: "
                f"{_some(others - train)}; expected only classes of {split_folders['train']}: add or remove folders."
            )
    # ImageNet's test folder has no class folders.
    return os.path.join(root, split_folders[wanted]), train if classes[split_folders[wanted]] else frozenset()


def _some(names: Set[str]) -> str:
    listed = sorted(map(line, names))
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "none"


def _class_images(root: str, known: Set[str]) -> tuple[dict[str, list[str]], files.LeftOut]:
    """Return the sorted paths, relative to `root`, of each class's images, and the files left out, which are logged.

    Folders with names that differ only in their Unicode composition are one class; `known` classes may have no folder.
    Raises UserError unless there is a class and each folder has an image.
    """
    left_out = files.LeftOut()
    folders, outside = _children(root, left_out)
    for name in outside:
        left_out.add(os.path.join(root, name), "not in a class folder" if files.is_image(name) else None)
    left_out_of = {name: files.LeftOut() for name in folders}
    with ThreadPoolExecutor(stores.THREADS) as pool:
        places = [os.path.join(root, name) for name in folders]
        found = list(pool.map(files.find_images, places, left_out_of.values()))
    images: dict[str, list[str]] = collections.defaultdict(list)
    for name, paths in zip(folders, found, strict=True):
        images[normalized([name])[0]] += [os.path.join(name, path) for path in paths]
        left_out.merge(left_out_of[name])
    files.report(root, left_out)
    _check_classes(root, images, left_out)
    return {name: sorted(images[name]) for name in sorted(images.keys() | known)}, left_out


def _check_classes(root: str, images: dict[str, list[str]], left_out: files.LeftOut) -> None:
    """Raise UserError unless there is a class and each class has an image."""
    accepted = ", ".join(files.ENDINGS)
    others = f" and {left_out}" if left_out.counts else ""
    if not any(images.values()):
        raise UserError(
            f"Found no images in class folders in {root}{others}, expected a sub-folder for each class with files "
            f"ending in {accepted}: check the path. Images without classes are read from one folder for all, such as "
            f"{os.path.join(root, 'train', 'all')}."
        )
    empty = {name for name, paths in images.items() if not paths}
    if empty:
        raise UserError(
            f"Found class folders without images in {root}: {_some(empty)}; expected files ending in {accepted} in "
            "each: add images or remove the folders."
        )


def _holdout(paths: list[str], split: str, share: float, seed: int) -> list[str]:
    """Return one class's training or test files; the files with the smallest hashes of (seed, path) are the test files.

    Because each path is hashed separately, nearly every file keeps its split when files are added or removed.
    """

    def digest(path: str) -> bytes:
        return hashlib.sha256(f"{seed}/{path.replace(os.sep, '/')}".encode(errors="surrogateescape")).digest()

    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    held_out = set(sorted(paths, key=digest)[:count])
    return [path for path in paths if (path in held_out) == (split == "test")]
