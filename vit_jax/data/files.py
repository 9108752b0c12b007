"""Find image files in local folders or object stores: which files every command reads, and in which order."""

import collections
import functools
import itertools
import logging
import os

from vit_jax import stores
from vit_jax.data.source import UnreadableImage
from vit_jax.printable import line
from vit_jax.types import UserError

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Files and folders that operating systems and programs create, in addition to names that begin with a dot.
LITTER = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
HIDDEN = "hidden"
MAX_NAMED = 8  # kinds of files listed in a message
MAX_LISTED = 1000  # left-out files whose paths are kept


class LeftOut:
    """The files and hidden folders that are not read: counts per kind, such as "2 .txt", with one example path each.

    files: the first MAX_LISTED paths, with the reason.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}

    def add(self, path: str, kind: str | None = None) -> None:
        """Count a file under `kind`, by default its extension."""
        if len(self.files) < MAX_LISTED:
            self.files[path] = kind or f"not one of {', '.join(ENDINGS)}"
        kind = kind or os.path.splitext(path)[1].lower() or "without an ending"
        self.counts[kind] += 1
        self.examples.setdefault(kind, path)

    def merge(self, other: "LeftOut") -> None:
        """Add the left-out files of another folder."""
        self.counts.update(other.counts)
        self.examples = other.examples | self.examples
        self.files |= itertools.islice(other.files.items(), MAX_LISTED - len(self.files))

    def __str__(self) -> str:
        named = self.counts.most_common(MAX_NAMED)
        kinds = [f"{count:,} {line(kind)}" for kind, count in named]
        if others := self.counts.total() - sum(count for _, count in named):
            kinds.append(f"{others:,} others")
        example = next((path for kind, path in self.examples.items() if kind != HIDDEN), None)
        return ", ".join(kinds) + (f"; for example {line(example)}" if example else "")


def is_image(name: str, endings: tuple[str, ...] = ENDINGS) -> bool:
    """Return whether a file name has an image extension."""
    return name.lower().endswith(endings)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is not part of the data: it begins with a dot, or a system created it."""
    return name.startswith(".") or name.lower() in LITTER


def children(folder: str, left_out: LeftOut | None = None) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the files directly in a folder.

    Hidden ones and links to a parent folder are left out. Raises OSError, and ValueError for a null character.
    """
    if stores.is_remote(folder):
        folders, files = stores.children(folder)
        round_trips = set[str]()
    else:
        with os.scandir(folder) as entries:
            found = [(entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries]
        folders, files = (sorted(name for name, is_folder, _ in found if is_folder is kind) for kind in (True, False))
        linked = [os.path.join(folder, name) for name, is_folder, is_link in found if is_folder and is_link]
        round_trips = {os.path.basename(path) for path in linked if _is_above(os.path.realpath(path), folder)}
    counted = LeftOut() if left_out is None else left_out
    for name in (*folders, *files):
        if is_hidden(name):
            counted.add(os.path.join(folder, name), HIDDEN)
        elif name in round_trips:
            counted.add(os.path.join(folder, name), "links to a folder above")
    folders = [name for name in folders if not is_hidden(name) and name not in round_trips]
    return folders, [name for name in files if not is_hidden(name)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_above(folder: str, other: str) -> bool:
    """Return whether a resolved folder is `other` or contains it."""
    return f"{os.path.realpath(other)}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def find_images(root: str, left_out: LeftOut, endings: tuple[str, ...] = ENDINGS) -> list[str]:
    """Return the sorted paths, relative to `root`, of all files with these endings; count the rest in `left_out`.

    See `children` for which names are hidden. A folder is searched once, however many links lead to it. Raises
    UserError if a folder cannot be read.
    """
    if stores.is_remote(root):
        return _find_objects(root, left_out, endings)
    images: list[str] = []
    visited: set[str] = set()
    folders, links = collections.deque([root]), collections.deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()  # links last, so that paths without links are kept
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        try:
            below, files = children(folder, left_out)
        except (OSError, ValueError) as error:
            raise UserError(
                f"Found a folder that cannot be read: {folder} ({getattr(error, 'strerror', None) or error}), expected to list "
                "its images: change its permissions or remove it."
            ) from error
        for path in (os.path.join(folder, name) for name in below):
            (links if os.path.islink(path) else folders).append(path)
        for path in (os.path.join(folder, name) for name in files):
            if is_image(path, endings):
                images.append(os.path.relpath(path, root))
            else:
                left_out.add(path)
    return sorted(images)


def _find_objects(root: str, left_out: LeftOut, endings: tuple[str, ...]) -> list[str]:
    images = []
    for name, info in stores.entries(root).items():
        path = stores.join_url(root, name) if name else root
        if any(map(is_hidden, name.split("/"))):
            left_out.add(path, HIDDEN)
        elif not is_image(path, endings):
            left_out.add(path)
        elif info.size > stores.MAX_BYTES:
            left_out.add(path, "too large for an image")
        else:
            images.append(name)
    return images


def report(root: str, left_out: LeftOut) -> None:
    """Log on one line the number and kinds of files in a folder that are not read, with an example."""
    if left_out.counts:
        _log_once(f"Not read in {line(root)}: {left_out}")


@functools.cache
def _log_once(message: str) -> None:
    """Log a message once, even if training and evaluation read the same folder."""
    logging.warning("%s", message)


def read_lines(path: str, what: str = "") -> list[str]:
    """Return the non-empty lines of a text file; raises UserError if there are none.

    what: the name of the file in the message; "text file at 'PATH'" by default.
    """
    what = what or f"text file at {path!r}"
    try:
        lines = stores.read(os.path.expanduser(path)).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Found no readable {what} ({reason}); expected one entry on each line.") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"Found no lines in the {what}; expected one entry on each line.")
    return found


def read_file(path: str) -> bytes:
    """Return the bytes of an image file or object; raises UnreadableImage."""
    try:
        return stores.read(path)
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
