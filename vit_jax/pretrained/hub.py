"""Files from the Hugging Face hub and from the buckets of the original ViT and Mixer, kept in a cache.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are heeded as everywhere; VIT_JAX_BUCKETS is another address of the buckets.
"""

import base64
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from vit_jax.types import UserError

BUCKETS = "https://storage.googleapis.com"
FILES = ["config.json", "preprocessor_config.json", "model.safetensors.index.json", "model*.safetensors"]
OLDER_FILES = ["pytorch_model.bin", "pytorch_model.pth", "*.npz"]


def cache() -> Path:
    """Where what comes from the buckets is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "vit_jax"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for nothing but what is in the cache."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def from_hub(reference: str) -> Path:
    """The folder of a model OWNER/NAME[@revision] of the hub: its configs and weights, downloaded where not in the cache."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", reference)
    if match is None:
        raise UserError(
            f"'hf:{reference}' names no model of the hub; expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION."
        )
    name, revision = match.groups()
    folder = _snapshot(name, revision, FILES)
    if not list(folder.glob("*.safetensors")):
        folder = _snapshot(name, revision, FILES + OLDER_FILES)
    return folder


def _snapshot(name: str, revision: str | None, files: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    where = f"hf:{name}" + (f"@{revision}" if revision else "")
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files, endpoint=address)
        )
    except errors.GatedRepoError:
        raise UserError(
            f"{where} is gated: accept its terms at {address}/{name}, then log in with `hf auth login` or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{where} is not on the hub ({address}), or is private; check OWNER/NAME, or log in with `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where}: the model has no revision {revision!r}; leave it out for the newest.") from None
    except errors.HFValidationError as error:
        raise UserError(f"{where} is no name of the hub ({error}).") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        reason = "HF_HUB_OFFLINE is set" if is_offline() else f"{address} cannot be reached"
        raise UserError(
            f"{where} is not in the cache and {reason}. Go online, or set HF_ENDPOINT to a mirror, or copy the model's folder "
            f"here and give its path ({type(error).__name__})."
        ) from None
    except Exception as error:  # the hub's client lets those of its network library through
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:150]}"
        raise UserError(
            f"{where} could not be downloaded ({reason}); the same command goes on where it stopped."
        ) from None
    for path in sorted(folder.rglob("*.safetensors")):
        _verify_blob(path, where)
    return folder


def _verify_blob(path: Path, where: str) -> None:
    """The hub's cache names large files by their SHA-256; a file that is not what its name says is removed."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    with open(blob, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{where}: {path.name} is damaged and was removed from the cache; the same command fetches it again."
        )


def from_bucket(name: str) -> Path:
    """The file of a public bucket, such as "vit_models/imagenet21k/ViT-B_16.npz".

    A download that broke off goes on where it stopped; a finished one is checked against the server's size and MD5.
    """
    target = cache() / "bucket" / name
    if target.exists():
        return target
    address = os.environ.get("VIT_JAX_BUCKETS") or BUCKETS
    url = f"{address.rstrip('/')}/{name}"
    if is_offline():
        raise UserError(
            f"{name} is not in the cache ({target}) and HF_HUB_OFFLINE is set; go online, or put the file there."
        )
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} answers {error.code} {error.reason}.") from None
    except urllib.error.URLError as error:
        raise UserError(f"{url} cannot be reached ({error.reason}).") from None
    except ValueError as error:
        raise UserError(
            f"{url} is no address ({error}); expected VIT_JAX_BUCKETS such as https://example.org/buckets."
        ) from None
    except (OSError, EOFError, http.client.HTTPException) as error:
        raise UserError(f"{url} broke off ({error}); the same command goes on where it stopped.") from None
    os.replace(partial, target)
    return target


def _download(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # what is there is no beginning of the file
            raise
        partial.unlink()
        return _download(url, partial)
    with response:
        resumed = response.status == 206
        total = (have if resumed else 0) + int(response.headers.get("Content-Length", 0))
        with open(partial, "ab" if resumed else "wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
        size = partial.stat().st_size
        if size < total:
            raise EOFError(f"{size:,} of {total:,} bytes")
        stated = re.search(r"md5=([\w+/=]+)", response.headers.get("x-goog-hash", ""))
    if stated:
        with open(partial, "rb") as file:
            found = hashlib.file_digest(file, "md5").digest()
        if found != base64.b64decode(stated[1]):
            partial.unlink()
            raise EOFError("its MD5 is not the one the server states, so it was removed")
