"""Read arrays from .npz, .safetensors and .pth files, and from folders with one of these and a config.json.

The format is detected from a file's first bytes. Nothing is unpickled: .npz is read with allow_pickle=False, .pth with
weights_only=True.
"""

import argparse
import datetime
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import types
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.config.hints import cast, fits, hint_name
from vit_jax.pretrained import wrappers
from vit_jax.pretrained.pretrained import FlatParams
from vit_jax.pretrained.reference import SUFFIXES, WEIGHTS
from vit_jax.types import UserError

CONFIG, PREPROCESSOR, OPEN_CLIP = "config.json", "preprocessor_config.json", "open_clip_config.json"

# Networks of transformers that are more than a backbone; their readers know all names.
WHOLE = ("upernet", "yolos", "vit_mae")


def read_arrays(path: Path) -> tuple[FlatParams, dict[str, Any], list[str]]:
    """Read the float32 arrays of a model in a file or folder, and the config.json next to them, {} if there is none.

    `preprocessor_config.json` is added to the config as "preprocessor". Returns notes on arrays that were left out.
    Raises UserError for damaged and unknown files.
    """
    try:
        file = path if path.is_file() else _weights_in(path)
        arrays = _read_shards(file) if file.suffix == ".json" else _read_file(file)
        # The config.json next to a file belongs to it only if the folder was given or the file has the standard name.
        stated = file.parent / (OPEN_CLIP if file.name.startswith("open_clip") else CONFIG)
        has_config = stated.is_file() and (path != file or file.name in WEIGHTS)
        config = _read_json(stated) if has_config else {}
        if config and (file.parent / PREPROCESSOR).is_file():
            config["preprocessor"] = _read_json(file.parent / PREPROCESSOR)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
    if not arrays:
        raise UserError(f"{file} contains no arrays; expected the weights of a model.")
    # BEiT's files contain the offsets between tokens, which are not weights.
    weights = {name: array for name, array in arrays.items() if not name.endswith("relative_position_index")}
    notes: list[str] = []
    if config.get("model_type") not in WHOLE:
        weights, notes = wrappers.unwrap(weights, str(file))
    return {name: _to_float32(name, array, file) for name, array in weights.items()}, config, notes


def config_value(config: Mapping[str, Any], key: str, hint: Any, default: Any, origin: str) -> Any:
    """Return a value from the config.json of `origin`, like `value_in`."""
    return value_in(config, key, hint, default, f"{origin}: its {CONFIG}")


def value_in(config: Mapping[str, Any], key: str, hint: Any, default: Any, file: str) -> Any:
    """Return config[key], or the default if it is absent or null; raises UserError if it is not of the hinted type."""
    value = config.get(key)
    if value is None:
        return default
    if not fits(value, hint):
        raise UserError(f"{file} has {key}={value!r:.80}; expected {hint_name(hint)}.")
    return cast(value, hint)


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    if len(files) == 1:
        return files[0]
    found = ", ".join(p.name for p in files) or "none"
    raise UserError(
        f"No model in {folder}; expected {WEIGHTS[0]} and config.json as saved by timm and transformers, or exactly one "
        f".safetensors, .npz or .pth file (found {found}), or the config.json and checkpoints of a training run."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)[:100]) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} contains a {type(value).__name__}; expected the config of a model.")
    return value


def _read_shards(index: Path) -> dict[str, Any]:
    """Read all files listed in an index; they must be in its folder."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and n == Path(n).name for n in names.values()):
        raise _damaged(index, "expected a weight_map of array names to file names")
    arrays: dict[str, Any] = {}
    for name in sorted(set(names.values())):
        arrays |= _read_file(index.parent / name)
    return arrays


def _read_file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        head = file.read(9)
    if not head:
        raise UserError(f"{path} is empty; download it again.")
    if head.startswith(b"PK"):
        return _read_zip(path)
    if len(head) == 9 and head[8:9] == b"{":
        try:
            return safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, KeyError, ValueError, OverflowError) as error:
            raise _damaged(path, error) from None
    if head.startswith(b"\x80"):
        return _read_torch(path)
    raise UserError(
        f"{path} is not a .npz, .safetensors or .pth file: it starts with {head[:8]!r}"
        f"{' (a web page)' if head.lstrip().startswith(b'<') else ''}; expected the weights of a model."
    )


def _read_zip(path: Path) -> dict[str, Any]:
    """Read a .npz file, or torch's zip format, which contains a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return _read_torch(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
            return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _pickled(path, "a .npz of plain arrays, or for .safetensors") from None
        raise _damaged(path, error) from None
    except MemoryError as error:
        raise UserError(
            f"{path} does not fit into memory ({error}); download it again if that is not its size, or use a larger machine."
        ) from None
    except RuntimeError as error:  # encrypted, or compressed with an unsupported method
        raise UserError(f"{path} cannot be unpacked ({error}); expected a file written by numpy.savez.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, SyntaxError) as error:
        raise _damaged(path, error) from None


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} needs torch: pip install torch, or use the model's .safetensors file.") from None
    try:
        with torch.serialization.safe_globals(_harmless()):
            loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        if "weights_only" not in reason.lower() and "Unsupported" not in reason:
            raise _damaged(path, reason[:120]) from None
        found = re.search(r"GLOBAL (\S+)", reason)
        raise _pickled(path, ".safetensors", found[1] if found else "") from None
    except Exception as error:  # torch raises many types for damaged files
        raise _damaged(path, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} contains a {type(loaded).__name__}; expected a state dict.")
    return dict(_leaves(loaded, ""))


def _harmless() -> list[Any]:
    """Return types saved with weights, in addition to torch's own list: containers and numbers, which run no code.

    The numpy functions have another name in files written since numpy 2, paths another name in Python 3.13.
    """
    arrays = (np._core.multiarray.scalar, np._core.multiarray._reconstruct)  # type: ignore[attr-defined]
    named = [(item, f"numpy.{core}.multiarray.{item.__name__}") for item in arrays for core in ("core", "_core")]
    dtypes = [item for item in vars(np.dtypes).values() if isinstance(item, type)]
    systems = {"Posix": pathlib.PurePosixPath, "Windows": pathlib.PureWindowsPath}
    names = [(kind, f"{pure}{system}Path") for system, kind in systems.items() for pure in ("", "Pure")]
    paths = [(kind, f"{module}.{name}") for kind, name in names for module in ("pathlib", "pathlib._local")]
    containers = [argparse.Namespace, types.SimpleNamespace, defaultdict, set, frozenset, complex, slice, range]
    return [*named, *dtypes, *paths, *containers, np.ndarray, np.dtype, datetime.datetime, datetime.timedelta]


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and arrays in nested containers with their names, joined by dots."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        items = []
        if hasattr(value, "detach") or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub"):
            yield prefix.removesuffix("."), value
    for key, item in items:
        yield from _leaves(item, f"{prefix}{key}.")


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged or incomplete ({reason}); download it again.")


def _pickled(path: Path, alternative: str, name: str = "") -> UserError:
    what = f"pickled objects ({name})" if name else "pickled objects"
    return UserError(
        f"{path} contains {what}, which could run code when loaded; expected only arrays. Ask its author for {alternative}."
    )


def _to_float32(name: str, array: Any, path: Path) -> np.ndarray:
    if hasattr(array, "detach"):  # a torch tensor
        if array.is_quantized or array.is_sparse or array.is_complex():
            raise UserError(
                f"{path} has {name} as a quantized, sparse or complex tensor; expected floating-point weights."
            )
        array = array.detach()
        array = (array.float() if array.is_floating_point() else array).numpy()
    array = np.asarray(array)
    if array.dtype == np.dtype("V2"):  # numpy saves bfloat16 as raw bytes
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype.kind in "iub" and array.ndim < 2:  # counters, such as a step
        return array
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        raise UserError(f"{path} has {name} of dtype {array.dtype}; expected floating-point weights.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(
            f"{path} has values in {name} that are not finite; download it again, or use another checkpoint."
        )
    return array


def check_new(path: Path) -> None:
    """Raise UserError if the path exists."""
    if os.path.lexists(path):
        raise UserError(f"{path} already exists; give a new path, or move it away.")


def write_folder(
    folder: Path, arrays: FlatParams, configs: Mapping[str, Mapping[str, Any]], name: str = WEIGHTS[0]
) -> None:
    """Write the weights and .json files into a new folder, which appears only when it is complete."""
    check_new(folder)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file, config in configs.items():
            (partial / file).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = partial / name
        safetensors.numpy.save_file(arrays, weights, metadata={"format": "pt"})
        shutil.copymode(partial / next(iter(configs)), weights)  # safetensors makes it readable only by the owner
        os.rename(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from None
