"""Object stores: read and write whole objects at gs://BUCKET/PATH and s3://BUCKET/PATH.

Credentials come from gcloud and aws. AWS_ENDPOINT_URL and STORAGE_EMULATOR_HOST select other servers.
Error messages never include the text of a server or library, which may contain a key.
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
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vit_jax.types import UserError

# Extra of vit_jax and the library that it installs.
EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
LOGIN = {
    "gs": "run `gcloud auth application-default login`, or let the machine's service account get the bucket and read and write "
    "its objects",
    "s3": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
# pathlib.Path collapses the two slashes into one.
URL = re.compile(r"(gs|s3):/{1,2}([a-z0-9][a-z0-9._-]+[a-z0-9])(?:/+(.*))?", flags=re.DOTALL)
NO_CREDENTIALS = ("NoCredentialsError", "DefaultCredentialsError")
THREADS = 16  # concurrent transfers
LOG_BYTES = 2**24  # downloads of at least this size are logged
MAX_BYTES = 2**30  # of a file that is read whole; more than any image that can be decoded


@dataclasses.dataclass(frozen=True)
class ObjectInfo:
    """An object's size in bytes, and a tag that changes with its content."""

    size: int
    tag: str


def is_too_long(path: str) -> bool:
    """Return whether a path is too long for the system."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    except ValueError:  # a null character
        pass
    return False


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Return whether a path is on an object store; raise UserError for an unsupported scheme such as az://."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)(://|:/(?!/))", str(url))
    if scheme is None or (scheme[1] not in EXTRAS and scheme[2] == ":/"):
        return False
    if scheme[1] not in EXTRAS:
        raise UserError(
            f"{scheme[1]}:// is not supported; expected a local path, gs://BUCKET/PATH or s3://BUCKET/PATH."
        )
    return True


def join_url(url: str, *parts: str) -> str:
    """Join paths like os.path.join."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def join(root: str, *parts: str) -> str:
    """Return a path below a folder, local or on an object store."""
    return join_url(root, *parts) if is_remote(root) else os.path.join(root, *parts)


def cache_folder() -> Path:
    """Return the folder for local copies of objects."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vit_jax" / "stores"


def entries(url: str) -> dict[str, ObjectInfo]:
    """Return all objects at and below a path, sorted by their relative names ("" is the path itself)."""
    files, path = _open(url)
    try:
        with readable_errors(url):
            found = files.find(path, detail=True)
    except FileNotFoundError:
        raise UserError(f"The bucket {_bucket_url(url)} does not exist; create it, or check the name.") from None
    named = {name.removeprefix(path).removeprefix("/"): info for name, info in found.items() if info["type"] == "file"}
    # Some programs mark folders with empty objects; names with .. could escape the folder that they are copied to.
    kept = {name: info for name, info in named.items() if not {"", ".", ".."} & set(name.split("/"))}
    if not kept and named.get("", {}).get("size"):
        kept = {"": named[""]}
    tags = {name: str(info.get("ETag") or info.get("etag")).strip('"') for name, info in kept.items()}
    return {name: ObjectInfo(kept[name]["size"], tags[name]) for name in sorted(kept)}


def children(url: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of folders and of objects directly below a path; raise FileNotFoundError if there are none."""
    files, path = _open(url)
    with readable_errors(url):
        found = files.ls(path, detail=True)
    below = [entry for entry in found if entry["name"].strip("/") != path]
    folders = {entry["name"].strip("/") for entry in below if entry["type"] == "directory"}
    objects = {entry["name"] for entry in below} - folders
    folders, objects = ({name.rpartition("/")[2] for name in names} for names in (folders, objects))
    return sorted(folders), sorted(objects)


def read(url: str) -> bytes:
    """Return the bytes of an object or a local file.

    Raises OSError, also for a local file that is not a regular file (a device may never end) or is larger than
    MAX_BYTES.
    """
    if not is_remote(url):
        try:
            status = os.stat(url)
        except ValueError as error:  # a null character in the path
            raise OSError(errno.EINVAL, str(error), url) from error
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", url)
        if status.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are more than the {MAX_BYTES:,} allowed", url)
        with open(url, "rb") as file:
            return file.read(MAX_BYTES)
    files, path = _open(url)
    with readable_errors(url):
        return files.cat_file(path)


def write(url: str, content: bytes) -> None:
    """Create or replace an object."""
    files, path = _open(url)
    with readable_errors(url):
        files.pipe_file(path, content)


def remove(url: str, names: Iterable[str]) -> None:
    """Remove objects below a path."""
    files, path = _open(url)
    with readable_errors(url):
        for name in names:
            files.rm_file(f"{path}/{name}")


def fetch(url: str, names: Iterable[str], folder: Path) -> None:
    """Download objects below a path into a folder, keeping their names; "" downloads the path itself to a file `folder`."""
    files, path = _open(url)

    def one(name: str) -> None:
        target = folder / name if name else folder
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        files.get_file(join_url(path, name) if name else path, str(partial))
        os.replace(partial, target)

    with readable_errors(url), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, names))


def send(folder: Path, names: Iterable[str], url: str) -> None:
    """Upload files of a folder to a path, keeping their names."""
    files, path = _open(url)
    with readable_errors(url), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: files.put_file(str(folder / name), f"{path}/{name}"), names))


class Copy:
    """A cached local copy of a folder below a path, downloaded object by object on demand.

    found: the objects by name relative to `url`. path: the local copy, which depends on the objects' content.
    """

    def __init__(self, url: str, folder: str):
        self.url = url
        self.found = {f"{folder}/{name}": entry for name, entry in entries(join_url(url, folder)).items()}
        self.path = _cache_path(repr((url, self.found)))

    def want(self, names: Iterable[str]) -> None:
        """Download objects that are not cached yet; ignore names that do not exist."""
        missing = [name for name in names if name in self.found and not (self.path / name).exists()]
        size = sum(self.found[name].size for name in missing)
        if size > LOG_BYTES:
            print(f"copying {len(missing)} files ({size / 1e9:.1f} GB) of {self.url} to {self.path}", flush=True)
        fetch(self.url, missing, self.path)


@contextlib.contextmanager
def replace_path(folder: Path, url: str) -> Iterator[None]:
    """Replace the path of a local copy in UserErrors with the original path."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), url)) from error.__cause__


def own_folder(url: str, purpose: str) -> Path:
    """Create an empty local folder for a path, removing files that a killed process left."""
    folder = _cache_path(url, purpose)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _cache_path(*key: str) -> Path:
    return cache_folder() / hashlib.sha256("\n".join(key).encode()).hexdigest()[:20]


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a path, and BUCKET/PATH in it."""
    match = URL.fullmatch(str(url))
    if match is None:
        raise UserError(
            f"Found a {str(url)[:2]}:// path without a valid bucket name; expected {str(url)[:2]}://BUCKET/PATH."
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

    # The library logs tracebacks, even for failures that it retries.
    logging.getLogger(library).setLevel(logging.CRITICAL)
    if scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST"):
        # tensorstore, which writes the arrays of checkpoints, reads another variable.
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", os.environ["STORAGE_EMULATOR_HOST"])
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)


def _bucket_url(url: str) -> str:
    return "://".join(URL.fullmatch(url).group(1, 2))  # type: ignore[union-attr]


@contextlib.contextmanager
def readable_errors(url: str) -> Iterator[None]:
    """Convert errors of a store into UserError with a remedy; missing objects still raise FileNotFoundError."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "No such object", error.filename or url) from None
    except Exception as error:
        bucket, kind = _bucket_url(url), type(error).__name__
        if getattr(error, "filename", None) or getattr(error, "errno", 0) == errno.ENOSPC:  # of the local disk
            raise UserError(
                f"{bucket} cannot be downloaded: {getattr(error, 'strerror', kind)} ({cache_folder()})."
            ) from None
        if isinstance(error, PermissionError) or kind in NO_CREDENTIALS or getattr(error, "code", 0) in (401, 403):
            raise UserError(
                f"{bucket}: no credentials, or no permission with those found ({kind}); {LOGIN[bucket[:2]]}."
            ) from None
        if "project was not passed" in str(error).lower():
            raise UserError(f"{bucket}: set GOOGLE_CLOUD_PROJECT to the name of your project.") from None
        raise UserError(
            f"{bucket} cannot be reached ({kind}); check the network and repeat the command, which resumes."
        ) from None
