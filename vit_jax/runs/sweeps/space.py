"""Define sweeps as data: lists of settings, {config key: value}, and functions that create and combine them.

    product({"optim.lr": [1e-3, 3e-3], "model.width": [32, 64]}, seeds(2))      # 8 settings
    zipped({"model.width": [32, 64], "model.depth": [6, 3]})                    # 2
    chain(seeds(3), product({"task.label_smoothing": [0.1, 0.2]}, seeds(3)))    # 9
    sample(20, {"optim.lr": log_uniform(1e-4, 1e-2), "model.pool": choice("tok", "gap")})    # 20

A key is a path in the config, as in --config.KEY=VALUE, or "config" for another config file, FILE.py[:ARG]; a dict
value replaces a whole component. A dict of lists is accepted wherever a list of settings is.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import numbers
import random
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from vit_jax.config.factory import check_plain, quoted, short_names
from vit_jax.config.hints import fits, hint_name
from vit_jax.types import Between, UserError

Setting: TypeAlias = dict[str, Any]
# A list of settings or a dict of lists; checked at run time for readable errors.
Settings: TypeAlias = Any
MAX_NAME = 100
RunCount = Annotated[int, Between(0, 100_000)]
# Characters that are unsafe in file names and shells.
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


def product(*parts: Settings) -> list[Setting]:
    """Return all combinations of one setting from each argument, the last varying fastest; a dict of lists is a grid.

    product({"a": [1, 2]}, {"b": [3, 4]}) == product({"a": [1, 2], "b": [3, 4]}); its first setting is {"a": 1, "b": 3}.
    """
    axes = [axis for part in parts for axis in _axes("product", part)]
    _check_count("product", math.prod(map(len, axes)))
    return [_join("product", settings) for settings in itertools.product(*axes)]


def zipped(*parts: Settings) -> list[Setting]:
    """Join the first settings of all arguments, then the second ones, and so on; the lists of a dict are zipped, too.

    zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]. Raises UserError if lengths differ.
    """
    axes = [axis for part in parts for axis in _axes("zipped", part)]
    lengths = [len(axis) for axis in axes]
    if len(set(lengths)) > 1:
        raise UserError(f"zipped: found lists of {', '.join(map(str, lengths))} values; expected equal lengths.")
    return [_join("zipped", settings) for settings in zip(*axes, strict=True)]


def chain(*parts: Settings) -> list[Setting]:
    """Concatenate the settings of all arguments.

    chain([{"a": 1}], seeds(2)) == [{"a": 1}, {"seed": 0}, {"seed": 1}]. Raises UserError for a dict of
    lists, which could mean a product or a zip.
    """
    if mapping := next((part for part in parts if isinstance(part, Mapping)), None):
        raise UserError(f"chain: found the dict {mapping!r}; use product({{...}}) or zipped({{...}}) instead.")
    return [setting for part in parts for axis in _axes("chain", part) for setting in axis]


def seeds(count: int, first: int = 0) -> list[Setting]:
    """Return settings for `count` seeds: [{"seed": 0}, {"seed": 1}] for 2."""
    _check_count("seeds", count)
    return [{"seed": first + number} for number in range(count)]


def _check_count(where: str, count: Any) -> None:
    """Raise UserError if a sweep would have too many runs, before creating them."""
    if not fits(count, RunCount):
        raise UserError(f"{where}: found {quoted(count)} settings; expected {hint_name(RunCount)}.")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution: uniform over [low, high], log-uniform with `log`, or uniform over `choices`."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def draw(self, rng: random.Random) -> Any:
        """Draw one value; numbers are rounded to four digits because they appear in run names."""
        at = rng.random()
        if self.choices:
            return self.choices[int(at * len(self.choices))]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + at * (high - low)
        return float(f"{math.exp(value) if self.log else value:.4g}")


def uniform(low: float, high: float) -> Distribution:
    """Return the uniform distribution over [low, high]."""
    if not low < high:
        raise UserError(f"uniform({low}, {high}): expected low < high.")
    return Distribution(low, high)


def log_uniform(low: float, high: float) -> Distribution:
    """Return the log-uniform distribution over [low, high], as for learning rates."""
    if not 0 < low < high:
        raise UserError(f"log_uniform({low}, {high}): expected 0 < low < high.")
    return Distribution(low, high, log=True)


def choice(*values: Any) -> Distribution:
    """Return the uniform distribution over the values."""
    if not values:
        raise UserError("choice(): expected at least one value.")
    return Distribution(choices=values)


def sample(count: int, space: Mapping[str, Any], seed: int = 0) -> list[Setting]:
    """Draw `count` random settings, the same for the same seed.

    A larger count keeps the first ones, and adding a key does not change the values of other keys.
    """
    _check_count("sample", count)
    for key, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise UserError(
                f"sample: {key} is {distribution!r}; expected uniform(...), log_uniform(...) or choice(...)."
            )
    rngs = {key: random.Random(f"{seed} {key}") for key in space}
    return [
        {key: _plain_value(key, distribution.draw(rngs[key])) for key, distribution in space.items()}
        for _ in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The return value of get_sweep() in a sweep file.

    config: the config of every run, FILE.py[:ARG]. runs: the settings of each run. metric: ranks the runs, such as
    "test/accuracy". mode: whether the "max" or "min" of the metric is best.
    """

    config: str
    runs: Settings
    metric: str | None = None
    mode: str = "max"

    def __post_init__(self):
        if self.mode not in ("max", "min"):
            raise UserError(f"Sweep: mode is {self.mode!r}; expected 'max' or 'min'.")
        for name, value in (("config", self.config), ("metric", self.metric or "")):
            if not isinstance(value, str):
                raise UserError(f"Sweep: {name} is {value!r}; expected a string.")
        object.__setattr__(self, "runs", product(self.runs))
        if not self.runs:
            raise UserError("Sweep: runs is empty; expected a list of settings such as product({...}, seeds(2)).")


def _axes(where: str, argument: Any) -> list[list[Setting]]:
    """Return the axes of an argument: itself, or one axis per key of a dict of lists."""
    if isinstance(argument, Mapping):
        for key, values in argument.items():
            if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
                raise UserError(f"{where}: {key} is {values!r}; expected a list, even for a single value.")
        return [[{_key(where, key): _plain_value(key, value)} for value in values] for key, values in argument.items()]
    if isinstance(argument, str) or not hasattr(argument, "__iter__"):
        raise UserError(f"{where}: found {argument!r}; expected settings: a list of dicts, or a dict of lists.")
    settings = list(argument)
    for setting in settings:
        if not isinstance(setting, Mapping):
            raise UserError(f"{where}: found {setting!r} among the settings; expected {{config key: value}}.")
    return [[{_key(where, key): _plain_value(key, value) for key, value in setting.items()} for setting in settings]]


def _key(where: str, key: Any) -> str:
    if not isinstance(key, str) or not all(key.split(".")):
        raise UserError(f"{where}: {key!r} is not a config key; expected a path such as 'optim.lr'.")
    return key


def _join(where: str, settings: Sequence[Setting]) -> Setting:
    joined: Setting = {}
    for setting in settings:
        for key in setting:
            if key in joined:
                raise UserError(f"{where}: {key} is set twice, to {joined[key]!r} and to {setting[key]!r}.")
        joined |= setting
    return joined


def _plain_value(key: str, value: Any) -> Any:
    """Convert a value to bool, int, float, str, None, list or dict, including NumPy numbers and tuples."""
    if isinstance(value, Mapping):
        return {name: _plain_value(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(f"{key}[{index}]", item) for index, item in enumerate(value)]
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    check_plain(value, key)
    return value


def run_names(runs: Sequence[Setting], taken: Collection[str] = ()) -> list[str]:
    """Return a unique name for each run, such as lr=0.001,width=64,seed=0, that is not in `taken`.

    Names list the keys whose values differ, each by the shortest suffix that is unique. A hash is appended to long names and
    duplicates.
    """
    suffixes = short_names(_swept_keys(runs))
    used = {name.lower() for name in taken}  # some file systems ignore case
    plain = [
        ",".join(f"{short}={_name_part(run[key])}" for key, short in suffixes.items() if key in run) for run in runs
    ]
    names = []
    for run, name in zip(runs, plain, strict=True):
        name = name or "base"
        unique = sum(other.lower() == name.lower() for other in plain) <= 1 and name.lower() not in used
        # The log and the lock of a run are files next to its workdir.
        if not unique or len(name) > MAX_NAME or name.endswith((".log", ".json")):
            digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]
            name = f"{name[: MAX_NAME - 9]}-{digest}"
        used.add(name.lower())
        names.append(name)
    return names


def _swept_keys(runs: Sequence[Setting]) -> list[str]:
    """Return the keys whose values differ between runs, in order of appearance; all keys of a single run."""
    keys = list(dict.fromkeys(key for run in runs for key in run))
    absent = object()
    return [
        key for key in keys if len(runs) == 1 or any(run.get(key, absent) != runs[0].get(key, absent) for run in runs)
    ]


def _name_part(value: Any) -> str:
    """Return a value as part of a file name: a component's type or else its values, or a config's file and argument."""
    if isinstance(value, dict):
        if value.get("type"):
            return _name_part(value["type"])
        named = [(key, x) for key, x in value.items() if x is not None]
        value = [x if isinstance(x, str | dict | list) else f"{key}_{x}" for key, x in named]
    if isinstance(value, list):
        return "+".join(map(_name_part, value)) or "none"
    text = str(value)
    path, _, argument = text.partition(":")
    if path.endswith(".py"):
        text = f"{Path(path).stem}_{argument}".rstrip("_")
    return UNSAFE.sub("_", text).strip("_") or "none"
