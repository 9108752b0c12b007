"""The names of runs: what a sweep varies, as in lr=0.001,width=64,seed=0."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.config.factory import short_names

LONGEST = 100
# What neither a shell nor a file system takes for anything else.
SAFE = re.compile(r"[^A-Za-z0-9._+-]+")


def run_names(runs: Sequence[Mapping[str, Any]], taken: Collection[str] = ()) -> list[str]:
    """A name for each of the settings, of the keys whose values differ: unlike all others and those `taken`.

    A key goes by its last words, as many as tell it from the others. A long name, or one of several alike, ends with a hash.
    """
    tails = short_names(varied(runs))
    used = {name.lower() for name in taken}  # some file systems know no case
    plain = [",".join(f"{tail}={word(run[key])}" for key, tail in tails.items() if key in run) for run in runs]
    names = []
    for run, name in zip(runs, plain, strict=True):
        name = name or "base"
        alone = sum(other.lower() == name.lower() for other in plain) <= 1
        # The log and the lock of a run lie beside it.
        if not alone or name.lower() in used or len(name) > LONGEST or name.endswith((".log", ".json")):
            text = json.dumps(run, sort_keys=True)
            name = f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        used.add(name.lower())
        names.append(name)
    return names


def varied(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that not all runs have with the same value, in the order in which they first come; of a single run all."""
    keys = list(dict.fromkeys(key for run in runs for key in run))
    absent = object()
    return [
        key for key in keys if len(runs) == 1 or any(run.get(key, absent) != runs[0].get(key, absent) for run in runs)
    ]


def word(value: Any) -> str:
    """A value as a part of a file's name: the type of a part, the file and argument of a config, the numbers of a list."""
    if isinstance(value, dict):
        return word(value.get("type", "part"))
    if isinstance(value, list):
        return "+".join(map(word, value)) or "none"
    text = str(value)
    path, _, argument = text.partition(":")
    if path.endswith(".py"):
        text = f"{Path(path).stem}_{argument}".rstrip("_")
    return SAFE.sub("_", text).strip("_") or "none"
