"""A folder of config.json and model.safetensors, as timm and transformers publish models."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy

from vit_jax.pretrained.links import Flat
from vit_jax.types import UserError


def check_new(folder: Path) -> None:
    """Raises UserError where something stands at this path."""
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already; give a new path, or move it away.")


def write(folder: Path, arrays: Flat, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the arrays and the .json files of a model, seen only once they are complete."""
    check_new(folder)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, record in records.items():
            (partial / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        safetensors.numpy.save_file(arrays, partial / "model.safetensors", metadata={"format": "pt"})
        os.rename(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from None
