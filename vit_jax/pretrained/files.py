"""Arrays from the files that others publish: .npz, .safetensors, .pth, or a folder with one of them and its config.

The kind of a file is told by its first bytes, not by its name. Nothing is unpickled: .npz with allow_pickle=False, .pth by
torch's weights_only reader.
"""

import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.pretrained.links import Flat
from vit_jax.types import UserError

# In a folder: the first of these that is there.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.pth")
SUFFIXES = (".safetensors", ".npz", ".pth")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# What training scripts wrap the weights in.
WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema", "params")


def read_arrays(path: Path) -> tuple[Flat, dict[str, Any]]:
    """The arrays of a file, or of the file in a folder, in float32, and what the config.json beside them says.

    `preprocessor_config.json` comes with it under "preprocessor". Raises UserError for what is damaged or of no kind known.
    """
    try:
        file = path if path.is_file() else _weights_in(path)
        arrays = _read_shards(file) if file.suffix == ".json" else _read_file(file)
        config = _read_json(file.parent / CONFIG) if _has_config(path, file) else {}
        if config and (file.parent / PREPROCESSOR).is_file():
            config["preprocessor"] = _read_json(file.parent / PREPROCESSOR)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
    if not arrays:
        raise UserError(f"{file} holds no arrays; expected the weights of a model.")
    return {name: _as_float32(name, array, file) for name, array in arrays.items()}, config


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    single = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    if len(single) == 1:
        return single[0]
    found = ", ".join(p.name for p in single) or "none"
    raise UserError(
        f"The folder {folder} holds no model: expected {WEIGHTS[0]} with a config.json, as timm and transformers save it, or "
        f"exactly one .safetensors, .npz or .pth file (found {found}), or the config.json and checkpoints of a training run."
    )


def _has_config(asked: Path, file: Path) -> bool:
    """A config.json counts where the folder was named, or the file has the name that goes with it."""
    return (file.parent / CONFIG).is_file() and (asked != file or file.name in WEIGHTS)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:100]}); fetch it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; expected the config of a model.")
    return value


def _read_shards(index: Path) -> dict[str, Any]:
    """The arrays of all the files that an index names; they stand beside it."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and n == Path(n).name for n in names.values()):
        raise UserError(f"{index} is damaged: expected a weight_map of array names to file names; fetch it again.")
    arrays: dict[str, Any] = {}
    for name in sorted(set(names.values())):
        arrays |= _read_file(index.parent / name)
    return arrays


def _read_file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        head = file.read(9)
    if not head:
        raise UserError(f"{path} is empty; fetch it again.")
    if head.startswith(b"PK"):
        return _read_zip(path)
    if len(head) == 9 and head[8:9] == b"{":
        return _read_safetensors(path)
    if head.startswith(b"\x80"):
        return _read_torch(path)
    raise UserError(
        f"{path} is no .npz, .safetensors or .pth file: it begins with {head[:8]!r}"
        f"{' (a page of the web, not a file of weights)' if head.lstrip().startswith(b'<') else ''}; expected the weights of a "
        "model in one of these."
    )


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error}), perhaps not wholly downloaded; fetch it again.") from None


def _read_zip(path: Path) -> dict[str, Any]:
    """A .npz, or torch's zip, in which one entry is a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return _read_torch(path)
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
            return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path} holds pickled objects, which could run code when read; expected plain arrays. Ask its author for a "
                ".npz of arrays, or for .safetensors."
            ) from None
        raise UserError(f"{path} is damaged ({error}); fetch it again.") from None
    except MemoryError as error:
        raise UserError(
            f"{path} does not fit into memory ({error}); fetch it again if that is not its size, or use a larger machine."
        ) from None
    except RuntimeError as error:  # encrypted, or packed by a method that this Python does not have
        raise UserError(f"{path} cannot be unpacked ({error}); expected what numpy.savez writes.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, SyntaxError) as error:
        raise UserError(f"{path} is damaged ({error}), perhaps not wholly downloaded; fetch it again.") from None


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file, which takes torch to read: pip install torch, or give the same model as .safetensors."
        ) from None
    try:
        loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        if "weights_only" not in reason.lower() and "Unsupported" not in reason:
            raise UserError(f"{path} is damaged ({reason[:120]}); fetch it again.") from None
        raise UserError(
            f"{path} holds pickled objects other than weights, which could run code when read; expected a state dict alone. "
            "Ask its author for .safetensors."
        ) from None
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{path} is damaged ({reason}); fetch it again.") from None
    while isinstance(loaded, Mapping) and (
        inner := next((k for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), "")
    ):
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}; expected a state dict.")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return {
        str(name).removeprefix("module."): (x.float() if x.is_floating_point() else x).numpy()
        for name, x in tensors.items()
    }


def _as_float32(name: str, array: np.ndarray, path: Path) -> np.ndarray:
    """Floats of any width as float32; numpy saves bfloat16 as raw two bytes."""
    array = np.asarray(array)
    if array.dtype == np.dtype("V2"):
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype.kind in "iub" and array.ndim < 2:  # counters, such as a step
        return array
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        raise UserError(f"{path} has {name} of dtype {array.dtype}; expected floating-point weights.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path} has values in {name} that are not finite; fetch it again, or use another checkpoint.")
    return array
