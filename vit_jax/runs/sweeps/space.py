"""Sweeps as data: lists of settings, {config key: value}, and what makes and joins them.

    product({"optim.lr": [1e-3, 3e-3], "model.width": [32, 64]}, seeds(2))      # 8 settings
    zipped({"model.width": [32, 64], "model.depth": [6, 3]})                    # 2
    chain(seeds(3), product({"task.label_smoothing": [0.1, 0.2]}, seeds(3)))    # 9
    sample(20, {"optim.lr": log_uniform(1e-4, 1e-2), "model.pool": choice("tok", "gap")})    # 20

A key is a path in the config, as in --config.KEY=VALUE, or "config" for another config file, FILE.py[:ARG]; a value that is a
dict replaces a whole part. Where a list of settings is expected a dict of lists is one too.
"""

import dataclasses
import itertools
import math
import numbers
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from vit_jax.config.factory import check_plain
from vit_jax.types import UserError

Setting: TypeAlias = dict[str, Any]
# What users write: a list of settings, or a dict of lists. It is checked here and not by its type, so that mistakes are told.
Settings: TypeAlias = Any


def product(*parts: Settings) -> list[Setting]:
    """Every combination of one setting of each part, the last part varying fastest; a dict of lists is a grid.

    product({"a": [1, 2]}, {"b": [3, 4]}) == product({"a": [1, 2], "b": [3, 4]}), which begins with {"a": 1, "b": 3}.
    """
    axes = [axis for part in parts for axis in _axes("product", part)]
    return [_join("product", settings) for settings in itertools.product(*axes)]


def zipped(*parts: Settings) -> list[Setting]:
    """The first settings of all parts joined, then the second ones, and so on; a dict of lists goes in step.

    zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]. Raises UserError where lengths differ.
    """
    axes = [axis for part in parts for axis in _axes("zipped", part)]
    lengths = [len(axis) for axis in axes]
    if len(set(lengths)) > 1:
        raise UserError(f"zipped: lists of {', '.join(map(str, lengths))} values; expected as many in each.")
    return [_join("zipped", settings) for settings in zip(*axes, strict=True)]


def chain(*parts: Settings) -> list[Setting]:
    """The settings of all parts, one part after the other.

    chain([{"a": 1}], seeds(2)) == [{"a": 1}, {"seed": 0}, {"seed": 1}]. A dict of lists is refused: it does not say how its
    lists go together.
    """
    if mapping := next((part for part in parts if isinstance(part, Mapping)), None):
        raise UserError(f"chain: found the dict {mapping!r}; say product({{...}}) or zipped({{...}}).")
    return [setting for part in parts for axis in _axes("chain", part) for setting in axis]


def seeds(count: int, first: int = 0) -> list[Setting]:
    """So many seeds, [{"seed": 0}, {"seed": 1}] for 2."""
    return [{"seed": first + number} for number in range(count)]


@dataclasses.dataclass(frozen=True)
class Draw:
    """What the values of a key are drawn from: numbers of [low, high], with `log` evenly in their logarithm, or choices."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def value(self, source: random.Random) -> Any:
        """One value; numbers are rounded to four digits, as they stand in the names of runs."""
        at = source.random()
        if self.choices:
            return self.choices[int(at * len(self.choices))]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + at * (high - low)
        return float(f"{math.exp(value) if self.log else value:.4g}")


def uniform(low: float, high: float) -> Draw:
    """Numbers between the two, any as likely as any other."""
    if not low < high:
        raise UserError(f"uniform({low}, {high}): expected a lower and a higher number.")
    return Draw(low, high)


def log_uniform(low: float, high: float) -> Draw:
    """Numbers between the two, any factor as likely as any other, as suits learning rates."""
    if not 0 < low < high:
        raise UserError(f"log_uniform({low}, {high}): expected a lower and a higher number above 0.")
    return Draw(low, high, log=True)


def choice(*values: Any) -> Draw:
    """Any of the values."""
    if not values:
        raise UserError("choice(): expected at least one value.")
    return Draw(choices=values)


def sample(count: int, space: Mapping[str, Any], seed: int = 0) -> list[Setting]:
    """So many settings drawn at random, the same ones every time.

    sample(20, {"optim.lr": log_uniform(1e-4, 1e-2), "model.pool": choice("tok", "gap")}) is of 20. A larger count keeps the
    first ones, and another key leaves the values of the others as they are.
    """
    for key, draw in space.items():
        if not isinstance(draw, Draw):
            raise UserError(f"sample: {key} is {draw!r}; expected uniform(...), log_uniform(...) or choice(...).")
    sources = {key: random.Random(f"{seed} {key}") for key in space}
    return [{key: _plain(key, draw.value(sources[key])) for key, draw in space.items()} for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What get_sweep() of a sweep file returns.

    config: the config of every run, FILE.py[:ARG]. runs: what each changes of it. metric: what tells the best run, such as
    "test/accuracy", of which the "max" or "min" counts.
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
                raise UserError(f"Sweep: {name} is {value!r}; expected text.")
        object.__setattr__(self, "runs", product(self.runs))
        if not self.runs:
            raise UserError("Sweep: it has no runs; expected a list of settings such as product({...}, seeds(2)).")


def _axes(where: str, part: Any) -> list[list[Setting]]:
    """The lists of settings that a part stands for: itself, or of a dict of lists one for each key."""
    if isinstance(part, Mapping):
        for key, values in part.items():
            if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
                raise UserError(f"{where}: {key} is {values!r}; expected a list of values, also for a single one.")
        return [[{_key(where, key): _plain(key, value)} for value in values] for key, values in part.items()]
    if isinstance(part, str) or not hasattr(part, "__iter__"):
        raise UserError(f"{where}: found {part!r}; expected settings: a list of dicts, or a dict of lists.")
    settings = list(part)
    for setting in settings:
        if not isinstance(setting, Mapping):
            raise UserError(f"{where}: found {setting!r} among the settings; expected {{config key: value}}.")
    return [[{_key(where, key): _plain(key, value) for key, value in setting.items()} for setting in settings]]


def _key(where: str, key: Any) -> str:
    if not isinstance(key, str) or not all(key.split(".")):
        raise UserError(f"{where}: {key!r} is no config key; expected a path such as 'optim.lr'.")
    return key


def _join(where: str, settings: Sequence[Setting]) -> Setting:
    joined: Setting = {}
    for setting in settings:
        for key in setting:
            if key in joined:
                raise UserError(f"{where}: {key} is set twice, to {joined[key]!r} and to {setting[key]!r}.")
        joined |= setting
    return joined


def _plain(key: str, value: Any) -> Any:
    """A value as bool, int, float, str, None, list or dict: numbers of NumPy are taken too, and tuples become lists."""
    if isinstance(value, Mapping):
        return {name: _plain(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{key}[{index}]", item) for index, item in enumerate(value)]
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    check_plain(value, key)
    return value
