"""Object stores: places such as gs://BUCKET/PATH and s3://BUCKET/PATH, whose objects are read and written whole.

They are reached as gcloud and aws are, with the credentials that these keep. AWS_ENDPOINT_URL and STORAGE_EMULATOR_HOST name
other servers of the same protocols. No message repeats what a server or its library says, which may hold a key.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vit_jax.types import UserError

# The extra of pip and the library that it brings.
EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
LOGIN = {
    "gs": "run `gcloud auth application-default login`, or let the machine's account read and write objects and get the bucket",
    "s3": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
# A pathlib.Path makes one of two slashes.
PLACE = re.compile(r"(gs|s3):/{1,2}([a-z0-9][a-z0-9._-]+[a-z0-9])(?:/+(.*))?", flags=re.DOTALL)
NO_CREDENTIALS = ("NoCredentialsError", "DefaultCredentialsError")
THREADS = 16  # objects on their way at once
TOLD_BYTES = 2**24  # copies of data are told from this size on


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object: its size in bytes, and a tag that changes with its content."""

    size: int
    tag: str


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is on an object store; raises UserError for one on a kind of store that is not known here."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)(://|:/(?!/))", str(place))
    if scheme is None or (scheme[1] not in EXTRAS and scheme[2] == ":/"):
        return False
    if scheme[1] not in EXTRAS:
        raise UserError(f"Found a place on {scheme[1]}://, expected a path, gs://BUCKET/PATH or s3://BUCKET/PATH.")
    return True


def join(place: str, *parts: str) -> str:
    """A place below another, as os.path.join."""
    return "/".join([place.rstrip("/"), *(part.strip("/") for part in parts)])


def cache() -> Path:
    """The folder for copies of what is on stores."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vit_jax" / "stores"


def entries(place: str) -> dict[str, Entry]:
    """All objects at and below a place by their names from there ("" is the place itself), in order."""
    files, path = _open(place)
    try:
        with telling(place):
            found = files.find(path, detail=True)
    except FileNotFoundError:
        raise UserError(f"There is no bucket {_bucket(place)}; create it, or check the name.") from None
    named = {name.removeprefix(path).removeprefix("/"): info for name, info in found.items() if info["type"] == "file"}
    # Some programs mark folders by empty objects, and no name may lead out of a folder that it is copied to.
    kept = {name: info for name, info in named.items() if not {"", ".", ".."} & set(name.split("/"))}
    if not kept and named.get("", {}).get("size"):
        kept = {"": named[""]}
    tags = {name: str(info.get("ETag") or info.get("etag")).strip('"') for name, info in kept.items()}
    return {name: Entry(kept[name]["size"], tags[name]) for name in sorted(kept)}


def children(place: str) -> tuple[list[str], list[str]]:
    """The sorted names of the folders and of the objects directly below a place; raises FileNotFoundError if it has none."""
    files, path = _open(place)
    with telling(place):
        found = files.ls(path, detail=True)
    below = [entry for entry in found if entry["name"].strip("/") != path]
    folders = {entry["name"].strip("/") for entry in below if entry["type"] == "directory"}
    objects = {entry["name"] for entry in below} - folders
    folders, objects = ({name.rpartition("/")[2] for name in names} for names in (folders, objects))
    return sorted(folders), sorted(objects)


def read(place: str) -> bytes:
    """The bytes of an object, or of a file here; raises OSError."""
    if not is_remote(place):
        with open(place, "rb") as file:
            return file.read()
    files, path = _open(place)
    with telling(place):
        return files.cat_file(path)


def write(place: str, content: bytes) -> None:
    """Makes or replaces an object."""
    files, path = _open(place)
    with telling(place):
        files.pipe_file(path, content)


def remove(place: str, names: Iterable[str]) -> None:
    """Removes objects below a place."""
    files, path = _open(place)
    with telling(place):
        for name in names:
            files.rm_file(f"{path}/{name}")


def fetch(place: str, names: Iterable[str], folder: Path) -> None:
    """Copies objects below a place into a folder, under the same names; a name "" makes a file of the folder itself."""
    files, path = _open(place)

    def one(name: str) -> None:
        target = folder / name if name else folder
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        files.get_file(join(path, name) if name else path, str(partial))
        os.replace(partial, target)

    with telling(place), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, names))


def send(folder: Path, names: Iterable[str], place: str) -> None:
    """Copies files of a folder to a place, under the same names."""
    files, path = _open(place)
    with telling(place), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: files.put_file(str(folder / name), f"{path}/{name}"), names))


class Copy:
    """A copy of a folder of a place, made object by object as they are wanted, and kept for other runs.

    found: the objects by their names from the place. path: where the copy is; other content there has another.
    """

    def __init__(self, place: str, folder: str):
        self.place = place
        self.found = {f"{folder}/{name}": entry for name, entry in entries(join(place, folder)).items()}
        self.path = _local(repr((place, self.found)))

    def want(self, names: Iterable[str]) -> None:
        """Sees to it that these objects are here; those that are not in the place are left out."""
        missing = [name for name in names if name in self.found and not (self.path / name).exists()]
        size = sum(self.found[name].size for name in missing)
        if size > TOLD_BYTES:
            print(f"copying {len(missing)} files ({size / 1e9:.1f} GB) of {self.place} to {self.path}", flush=True)
        fetch(self.place, missing, self.path)


@contextlib.contextmanager
def copied(place: str, names: Iterable[str]) -> Iterator[Path]:
    """A copy of objects below a place (or of itself, of the name ""), which is gone after the context."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / os.path.basename(place)
        with told_as(path, place):
            fetch(place, names, path)
            yield path


@contextlib.contextmanager
def told_as(folder: Path, place: str) -> Iterator[None]:
    """Errors about a local copy name the place that it is a copy of."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), place)) from error.__cause__


def own_folder(place: str, which: str) -> Path:
    """A new folder of this machine for what belongs to a place; what a killed process left there is removed."""
    folder = _local(place, which)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _local(*what: str) -> Path:
    return cache() / hashlib.sha256("\n".join(what).encode()).hexdigest()[:20]


def _open(place: str) -> tuple[Any, str]:
    """The file system of a place, and BUCKET/PATH in it."""
    match = PLACE.fullmatch(str(place))
    if match is None:
        raise UserError(
            f"Found a place on {str(place)[:2]}:// without the name of a bucket, expected such as {str(place)[:2]}://BUCKET/PATH."
        )
    scheme, bucket, path = match.groups()
    return _file_system(scheme), f"{bucket}/{path or ''}".strip("/")


@functools.cache
def _file_system(scheme: str) -> Any:
    extra, library = EXTRAS[scheme]
    try:
        importlib.import_module(library)
    except ImportError:
        raise UserError(
            f'{scheme}:// needs {library}, which is not installed: pip install "vit_jax[{extra}]".'
        ) from None
    import fsspec

    # It prints failures with the whole stack, also those of what it tries again.
    logging.getLogger(library).setLevel(logging.CRITICAL)
    if scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST"):
        # tensorstore, which writes the arrays of checkpoints, has a variable of its own.
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", os.environ["STORAGE_EMULATOR_HOST"])
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)


def _bucket(place: str) -> str:
    return "://".join(PLACE.fullmatch(place).group(1, 2))  # type: ignore[union-attr]


@contextlib.contextmanager
def telling(place: str) -> Iterator[None]:
    """Turns what keeps from using a store into one message; an object that is not there stays FileNotFoundError."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "No such object", error.filename or place) from None
    except Exception as error:
        bucket, kind = _bucket(place), type(error).__name__
        if getattr(error, "filename", None) or getattr(error, "errno", 0) == errno.ENOSPC:  # of the disk here
            raise UserError(f"{bucket} cannot be copied: {getattr(error, 'strerror', kind)} ({cache()}).") from None
        if isinstance(error, PermissionError) or kind in NO_CREDENTIALS or getattr(error, "code", 0) in (401, 403):
            raise UserError(
                f"{bucket} cannot be used with the credentials found, or without any ({kind}); {LOGIN[bucket[:2]]}."
            ) from None
        if "project was not passed" in str(error).lower():
            raise UserError(f"{bucket}: set GOOGLE_CLOUD_PROJECT to the name of your project.") from None
        raise UserError(
            f"{bucket} cannot be reached ({kind}); check the network and try again, the same command goes on."
        ) from None
