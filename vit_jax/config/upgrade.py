"""Upgrade records of earlier versions when they are read; no other code knows about earlier versions."""

import unicodedata
from typing import Any

# Increased by one whenever config.json changes in a way that is handled here.
VERSION = 2


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in the format of this version.

    Version 1 had one image and one label in an example, and no version number. Class names were once spelled as on the disk,
    which on macOS is not composed Unicode.
    """
    names = record["data"].get("class_names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        composed = [unicodedata.normalize("NFC", name) for name in names]
        record = {**record, "data": {**record["data"], "class_names": composed}}
    if record.get("version", 1) >= VERSION:
        return record
    data = dict(record["data"])
    shape = data.pop("label_shape", ())
    config = record["config"]
    if isinstance(data.get("image_shape"), list) and isinstance(names, list):
        data["layout"] = {
            "image": [data["image_shape"], "uint8"],
            "label": [list(shape), "float32" if shape else "int32"],
        }
        several = "Numbers" if str(config.get("task", {}).get("type", "")).endswith("Regress") else "Labels"
        data["fields"] = {"image": "Image", "label": several if shape else "Label"}
    return {**record, "data": data, "version": VERSION}
