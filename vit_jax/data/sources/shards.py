"""Load images with captions from tar files in webdataset's layout: a.jpg, a.txt, b.jpg, b.json, ..."""

import functools
import glob
import json
import os
import tarfile
from typing import Any, NamedTuple

from vit_jax.data import files
from vit_jax.data.images import ImageFile
from vit_jax.data.source import Example, Fields, Image, Source, Text, UnreadableImage
from vit_jax.types import Count, UserError

INDEX = ".index.json"
# key, offset and size of the image, offset and size of the caption, its ending
Entry = tuple[str, int, int, int, int, str]


class Member(NamedTuple):
    """The position of a file's bytes in a tar file."""

    begin: int
    size: int


class Shards(Source):
    """The pairs in local tar files, read in any order through an index that is built once.

    path: a folder of .tar files, or a pattern such as data/*.tar. A caption is a .txt, or the `text_key` of a .json: a
    text or a list of texts. The index of a.tar is stored next to it as a.tar.index.json, if that is possible, and used
    while the tar file's size and time stay the same. Files without a partner are left out.
    """

    def __init__(self, path: str, text_key: str = "caption", channels: Count = 3):
        path = os.path.expanduser(path)
        pattern = os.path.join(glob.escape(path), "*.tar") if os.path.isdir(path) else path
        self._tars = sorted(glob.glob(pattern))
        if not self._tars:
            raise UserError(
                f"Found no tar files at {path!r}, expected a folder with .tar files, or a pattern such as data/*.tar."
            )
        self._entries = [(tar, entry) for tar in self._tars for entry in index(tar)]
        if not self._entries:
            raise UserError(
                f"Found no image with a .txt or .json of the same name in {path}, expected pairs such as a.jpg, a.txt."
            )
        self._key, self._channels = text_key, channels
        self.fields = self.fields_of(())

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """See Source."""
        return {"image": Image(), "text": Text()}

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        tar, entry = self._entries[index]
        return f"{tar}/{entry[0]}"

    def __getitem__(self, index: int) -> Example:
        tar, (_, begin, size, text_begin, text_size, ending) = self._entries[index]
        image = ImageFile(functools.partial(_read, tar, begin, size), self._channels)
        text: Any
        try:
            text = _read(tar, text_begin, text_size).decode("utf-8-sig")
            if ending == ".json":
                stated = json.loads(text)
                text = stated.get(self._key) if isinstance(stated, dict) else None
        except (ValueError, RecursionError) as error:
            raise UnreadableImage(f"its caption cannot be read ({error})") from error
        return {"image": image, "text": text}


def _read(tar: str, begin: int, size: int) -> bytes:
    try:
        with open(tar, "rb") as file:
            file.seek(begin)
            data = file.read(size)
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    if len(data) < size:
        raise UnreadableImage(f"{tar} ends inside it")
    return data


def index(tar: str) -> list[Entry]:
    """Return the pairs of a tar file, from its index file if that is up to date."""
    status = os.stat(tar)
    stamp = [status.st_size, status.st_mtime_ns]
    try:
        with open(tar + INDEX, encoding="utf-8") as file:
            stored = json.load(file)
        entries = [tuple(entry) for entry in stored["entries"]]
        if stored["stamp"] == stamp and all(map(_is_entry, entries)):
            return entries  # type: ignore[return-value]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    entries = _scanned(tar)
    partial = f"{tar}{INDEX}.{os.getpid()}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump({"stamp": stamp, "entries": entries}, file)
        os.replace(partial, tar + INDEX)
    except OSError:  # the folder is not writable: the next run scans again
        pass
    return entries


def _is_entry(entry: tuple[Any, ...]) -> bool:
    """Return whether a value is an Entry; offsets may exceed 2**31."""
    if len(entry) != 6 or not isinstance(entry[0], str) or entry[5] not in (".txt", ".json"):
        return False
    return all(type(number) is int and 0 <= number < 2**62 for number in entry[1:5])


def _scanned(tar: str) -> list[Entry]:
    images: dict[str, Member] = {}
    texts: dict[str, tuple[Member, str]] = {}
    left_out = files.LeftOut()
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                # The name of an example ends at the first dot of its file's name.
                folder, _, file = member.name.rpartition("/")
                stem, dot, ending = file.partition(".")
                key, ending = f"{folder}/{stem}".lstrip("/"), f"{dot}{ending}".lower()
                place = Member(member.offset_data, member.size)
                if not member.isfile() or (not files.is_image(ending) and ending not in (".txt", ".json")):
                    left_out.add(f"{tar}/{member.name}", None if member.isfile() else "no file")
                elif files.is_image(ending):
                    images[key] = place
                elif ending == ".txt" or key not in texts:
                    texts[key] = (place, ending)
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"Found {tar}, which is no tar file that can be read ({error}): download or write it again."
        ) from None
    for key in images.keys() ^ texts.keys():
        left_out.add(f"{tar}/{key}", "without its image or caption")
    files.report(tar, left_out)
    return [(key, *images[key], *texts[key][0], texts[key][1]) for key in images if key in texts]
