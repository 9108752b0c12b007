"""Images in class folders: root/class/*.jpg, or root/{train,val,test}/class/*.jpg as ImageNet is laid out."""

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax import stores
from vit_jax.data.images import ImageFile
from vit_jax.data.source import Example, Image, Label, Source, UnreadableImage
from vit_jax.types import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Folder(Source):
    """The images of one split of a folder, in sorted order; class names are the sorted class folder names.

    With train/val/test sub-folders (any case; valid and validation mean val) `split` picks one of them. Otherwise each
    class is split into "train" and "test" by `holdout` and `split_seed`, and "all" is every file. Files may be nested
    at any depth inside a class folder; hidden files and folders are ignored. The folder may be on an object store.
    """

    def __init__(self, path: str, split: str = "train", holdout: float = 0.1, split_seed: int = 0, channels: int = 3):
        self._root, self._channels = os.path.expanduser(path), channels
        self._whole = self._root
        children = _subfolders(self._root)
        split_folders = _split_folders(self._root, children)
        if split_folders:
            self._root = _choose_split(self._root, split_folders, split)
            children = _subfolders(self._root)
        elif split not in ("train", "test", "all"):
            raise UserError(
                f"Found split={split!r} for {self._root}, which has no train/val/test sub-folders: "
                "choose 'train' or 'test' (a seeded holdout of each class) or 'all'."
            )
        elif not 0 < holdout < 1:
            raise UserError(f"Found holdout={holdout}, expected a share between 0 and 1: choose one such as 0.1.")
        with ThreadPoolExecutor(stores.THREADS) as pool:
            files = dict(zip(children, pool.map(functools.partial(_image_files, self._root), children), strict=True))
        _check_classes(self._root, files)
        if not split_folders and split != "all":
            files = {name: _holdout(paths, split, holdout, split_seed) for name, paths in files.items()}
        self.fields = {"image": Image(), "label": Label(tuple(files))}
        self._paths = [path for paths in files.values() for path in paths]
        self._labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        image = ImageFile(functools.partial(self._bytes, index), self._channels)
        return {"image": image, "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])

    def left_out(self) -> dict[str, str]:
        """See Source; images of another split are not among them."""
        found: dict[str, str] = {}
        for name in _everything(self._whole):
            parts = name.split("/")
            # Of a folder with splits, the classes are a level deeper.
            levels = 2 if self._whole != self._root else 1
            if any(part.startswith(".") for part in parts):
                found[os.path.join(self._whole, name)] = "hidden"
            elif not is_image(parts[-1]):
                found[os.path.join(self._whole, name)] = f"not one of {', '.join(EXTENSIONS)}"
            elif len(parts) <= levels:
                found[os.path.join(self._whole, name)] = "not in a class folder"
        return found

    def _bytes(self, index: int) -> bytes:
        try:
            return stores.read(self.name(index))
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error


def _subfolders(path: str) -> list[str]:
    """Return the sorted names of the folders in `path`; UserError if it is not a folder that can be read."""
    try:
        if stores.is_remote(path):
            return [name for name in stores.children(path)[0] if not name.startswith(".")]
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", error)
        raise UserError(
            f"Found no readable folder at {path!r} ({reason}), expected one with a sub-folder for each class: "
            "check the path and its permissions."
        ) from error


def splits_of(path: str) -> tuple[str, ...]:
    """Return the splits of a folder: its split sub-folders, or the parts of a holdout; UserError where it is not a folder."""
    root = os.path.expanduser(path)
    return tuple(_split_folders(root, _subfolders(root))) or ("train", "test", "all")


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _split_folders(root: str, children: list[str]) -> dict[str, str]:
    """Map train, val, test to their sub-folders; empty where `root` contains class folders.

    A folder named "train" that contains images itself is a class (of vehicles, say), not a split.
    """
    named = [name for name in children if name.lower() in SPLIT_FOLDERS]
    places = [os.path.join(root, name) for name in named]
    if not any(_subfolders(place) and not any(map(is_image, _files(place))) for place in places):
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


def _choose_split(root: str, split_folders: dict[str, str], split: str) -> str:
    """Return the path of the requested split, after checking that all splits have the same classes."""
    wanted = SPLIT_FOLDERS.get(split.lower())
    if wanted not in split_folders:
        found = ", ".join(sorted(split_folders))
        advice = "use split=val" if wanted == "test" and "val" in split_folders else f"use one of: {found}"
        raise UserError(f"Found the splits {found} in {root}, expected {split!r} among them: {advice}.")
    chosen = os.path.join(root, split_folders[wanted])
    classes = set(_subfolders(chosen))
    for name in split_folders.values():
        others = set(_subfolders(os.path.join(root, name)))
        if others and classes and others != classes:  # ImageNet's test folder has no class folders: nothing to compare
            raise UserError(
                f"Found different classes in {root}: only in {split_folders[wanted]}: {_some(classes - others)}; "
                f"only in {name}: {_some(others - classes)}; expected the same in all splits: add or remove folders."
            )
    return chosen


def _files(path: str) -> list[str]:
    return stores.children(path)[1] if stores.is_remote(path) else os.listdir(path)


def _everything(root: str) -> list[str]:
    """Return the sorted paths of all files below a folder, relative to it, with slashes. Links are followed."""
    if stores.is_remote(root):
        return sorted(stores.entries(root))
    found, visited = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        found += [os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/") for name in files]
    return sorted(found)


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "none"


def _image_files(root: str, class_name: str) -> list[str]:
    """Return the sorted paths, relative to `root`, of the images at any depth of a class folder. Links are followed."""
    if stores.is_remote(root):
        below = (name.split("/") for name in stores.entries(os.path.join(root, class_name)))
        kept = [parts for parts in below if is_image(parts[-1]) and not any(p.startswith(".") for p in parts)]
        return sorted(os.path.join(class_name, *parts) for parts in kept)
    found: list[str] = []
    visited: set[str] = set()

    def stop(error: OSError) -> None:
        raise UserError(
            f"Found a folder that cannot be read: {error.filename} ({error.strerror}), expected to list its images: "
            "change its permissions or remove it."
        ) from error

    for folder, subfolders, files in os.walk(os.path.join(root, class_name), onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above itself would never end
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        found += [os.path.join(relative, name) for name in files if is_image(name)]
    return sorted(found)


def _check_classes(root: str, files: dict[str, list[str]]) -> None:
    """Raise UserError unless there is a class and each has an image."""
    accepted = ", ".join(EXTENSIONS)
    if not any(files.values()):
        raise UserError(
            f"Found no images in class folders in {root}, expected a sub-folder for each class with files "
            f"ending in {accepted}: check the path."
        )
    empty = {name for name, paths in files.items() if not paths}
    if empty:
        raise UserError(
            f"Found class folders without images in {root}: {_some(empty)}; expected files ending in {accepted} in "
            "each: add images or remove the folders."
        )


def _holdout(paths: list[str], split: str, share: float, seed: int) -> list[str]:
    """Return one class's training or test files: those with the smallest hashes of (seed, path) are for testing.

    Hashing each path on its own keeps nearly every file in its half when files are added or removed.
    """

    def digest(path: str) -> bytes:
        return hashlib.sha256(f"{seed}/{path.replace(os.sep, '/')}".encode(errors="surrogateescape")).digest()

    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    held_out = set(sorted(paths, key=digest)[:count])
    return [path for path in paths if (path in held_out) == (split == "test")]
