"""Configs: load a file, apply `--config.KEY=VALUE`, build what a spec names, and compare two runs.

A seam is a place in the config that chooses a part: `dict(type="vit.ViT", **arguments)`. SEAMS says which package the types
of each seam live in; the package's KIND says what they must be or return.
"""

import difflib
import fnmatch
import importlib
import inspect
import pkgutil
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from vit_jax.config.kinds import cast, fits, hint_name
from vit_jax.types import UserError

SEAMS = {
    "model": "vit_jax.models",
    "model.stem": "vit_jax.models",
    "task": "vit_jax.tasks",
    "task.mix": "vit_jax.tasks.mixing",
    "grad": "vit_jax.grads",
    "grad.inner": "vit_jax.grads",
    "optim.rule": "vit_jax.optim.rules",
    "optim.schedule": "vit_jax.optim.schedules",
    "data.source": "vit_jax.data.sources",
    "evals.*": "vit_jax.evals",
    "evals.*.source": "vit_jax.data.sources",
    "evals.*.train": "vit_jax.data.sources",
}

# Keys that stand beside the arguments of a part's target, by its package.
BESIDE = {"vit_jax.evals": ("every",)}

# Keys that cannot change the numbers: a run may resume with other values of them.
FREE = (
    *("mesh", "sharding", "log", "checkpoint", "evals", "model.attention", "model.remat"),
    *("data.threads", "data.workers", "data.prefetch", "data.cache_mb", "data.source.path", "data.source.data_dir"),
)


class ConfigError(UserError, TypeError):
    """A config key, type or value that the user can correct; the message begins with its path in the config."""


def near(word: str, known: Iterable[str]) -> str:
    """The hint "; did you mean ...?" with the known words nearest to `word`, or "; expected one of ..." where none is near."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; expected one of: {', '.join(known)}." if known else "."


def seam_of(path: str) -> str | None:
    """The package whose types may stand at a config path, or None where the path is no seam."""
    parts = path.split(".")
    for pattern, package in SEAMS.items():
        keys = pattern.split(".")
        if len(keys) == len(parts) and all(map(fnmatch.fnmatchcase, parts, keys)):
            return package
    return None


def _makes(target: Any, kind: Any) -> bool:
    if inspect.isclass(target):
        return inspect.isclass(kind) and issubclass(target, kind) and not inspect.isabstract(target)
    return inspect.isfunction(target) and typing.get_type_hints(target).get("return") == kind


def _modules_in(package: str) -> list[str]:
    return [info.name for info in pkgutil.iter_modules(getattr(importlib.import_module(package), "__path__", []))]


def types_in(package: str) -> dict[str, Any]:
    """Every type of a seam by its name: those of the package itself and of its modules."""
    kind = importlib.import_module(package).KIND
    found = {}
    for prefix in ["", *(f"{module}." for module in _modules_in(package))]:
        module = importlib.import_module(f"{package}.{prefix}".rstrip("."))
        for name, target in vars(module).items():
            if (
                not name.startswith("_")
                and getattr(target, "__module__", "") == module.__name__
                and _makes(target, kind)
            ):
                found[prefix + name] = target
    return found


def resolve(type_name: Any, package: str, path: str, trust: bool = True) -> Callable[..., Any]:
    """What `type` names: "module.Name" in the seam's package, or "absolute.module:Name" where `trust` allows it."""
    kind = importlib.import_module(package).KIND
    if not isinstance(type_name, str):
        raise ConfigError(f"{path}.type is {type_name!r}; expected a name such as {next(iter(types_in(package)))!r}.")
    if ":" not in type_name:
        module_name, _, name = f"{package}.{type_name}".rpartition(".")
        if module_name in {package, *(f"{package}.{module}" for module in _modules_in(package))}:
            target: Any = getattr(importlib.import_module(module_name), name, None)
            if not name.startswith("_") and getattr(target, "__module__", "") == module_name and _makes(target, kind):
                return target
        raise ConfigError(f"{path}.type: unknown type {type_name!r}{near(type_name, types_in(package))}")
    module_name, _, name = type_name.partition(":")
    if not trust and not module_name.startswith("vit_jax."):
        raise ConfigError(
            f"{path}.type is {type_name!r}, code from outside vit_jax; pass --trust (in Python trust=True) if you trust "
            "its author."
        )
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}.type: cannot import {type_name!r} ({error}); expected 'package.module:Name'."
        ) from None
    if not _makes(target, kind):
        raise ConfigError(f"{path}.type: {type_name!r} makes no {getattr(kind, '__name__', kind)}.")
    return target


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a config may give to a target."""
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {name: p for name, p in inspect.signature(target).parameters.items() if p.kind in keyword}
    # Flax gives every module these two.
    return {k: p for k, p in found.items() if not (hasattr(target, "apply") and k in ("parent", "name"))}


def parameter_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The kinds of those parameters; Any where a parameter has no hint."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    return {name: hints.get(name, Any) for name in parameters(target)}


def call(path: str, target: Callable[..., Any], arguments: Mapping[str, Any], **extra: Any) -> Any:
    """target(**arguments, **extra) after a check of the arguments' names and kinds; a None stands for the default.

    Raises ConfigError that names the config path.
    """
    allowed = parameters(target)
    given = check_arguments(path, target, arguments, extra)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    lacks = [key for key in extra if key not in allowed and not takes_any]
    if lacks:
        raise ConfigError(f"{path}: {target.__qualname__} takes no {', '.join(lacks)}, which it would be given here.")
    given |= extra
    missing = [key for key, p in allowed.items() if p.default is p.empty and key not in given]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}, which {target.__qualname__} needs.")
    return target(**given)


def check_arguments(
    path: str, target: Callable[..., Any], arguments: Mapping[str, Any], extra: Collection[str] = ()
) -> dict[str, Any]:
    """The arguments that are given, as the kinds that the target takes; `extra` names what it gets from elsewhere.

    Raises ConfigError that names the config path.
    """
    allowed, hints = parameters(target), parameter_hints(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    given = {key: value for key, value in arguments.items() if value is not None}
    for key, value in given.items():
        if (key not in allowed and not takes_any) or key in extra:
            raise ConfigError(f"{path}.{key}: unknown key{near(key, set(allowed) - set(extra))}")
        if key in hints:
            if not fits(value, hints[key]):
                raise ConfigError(f"{path}.{key} is {shown(value)}; expected {hint_name(hints[key])}.")
            given[key] = cast(value, hints[key])
    return given


def check_part(path: str, spec: Any) -> None:
    """Raises ConfigError for a type and arguments at a config path, or in the parts inside, that are wrong by themselves.

    Nothing is made; what is lacking may come from elsewhere.
    """
    if not isinstance(spec, Mapping):
        return
    package = seam_of(path)
    if package is not None and "type" in spec:
        filled = getattr(importlib.import_module(package), "fill", dict)(dict(spec))
        others = ("type", *BESIDE.get(package, ()))
        own = {key: value for key, value in filled.items() if key not in others and not seam_of(f"{path}.{key}")}
        check_arguments(path, resolve(spec["type"], package, path), own)
    for key, value in spec.items():
        check_part(f"{path}.{key}", value)


def shown(value: Any, most: int = 200) -> str:
    """A value as a message shows it, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def build(spec: Any, path: str, *, trust: bool = True, **extra: Any) -> Any:
    """What the spec at a config path names, called with its arguments and `extra`; specs inside it are built first."""
    package = seam_of(path)
    assert package is not None, path
    if not isinstance(spec, Mapping | ml_collections.ConfigDict) or "type" not in spec:
        raise ConfigError(f"{path} is {shown(plain(spec))}; expected dict(type=..., ...).")
    spec = dict(plain(spec))
    target = resolve(spec["type"], package, path, trust)
    fill = getattr(importlib.import_module(package), "fill", dict)
    arguments = {
        key: build(value, f"{path}.{key}", trust=trust) if value is not None and seam_of(f"{path}.{key}") else value
        for key, value in fill(spec).items()
        if key != "type"
    }
    try:
        return call(path, target, arguments, **extra)
    except UserError as error:
        if isinstance(error, ConfigError) or package != "vit_jax.data.sources":
            raise
        # A run has several sources, which do not know their place in the config.
        raise UserError(f"{path}: {error}") from error


def plain(value: Any) -> Any:
    """A config as plain dictionaries with its references resolved."""
    try:
        return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
    except TypeError as error:  # it sorts its keys
        raise ConfigError(f"config has a key that is no text ({error}).") from None


def check_plain(config: Any, path: str = "config") -> None:
    """Raises ConfigError where a config holds what JSON cannot: keys other than text, values other than plain data."""
    if isinstance(config, dict):
        for key, value in config.items():
            if not isinstance(key, str) or not key or "." in key:
                raise ConfigError(f"{path} has the key {key!r}; expected text without dots.")
            check_plain(value, f"{path}.{key}")
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            check_plain(value, f"{path}[{index}]")
    elif config is not None and type(config) not in (bool, int, float, str):
        raise ConfigError(
            f"{path} is a {type(config).__name__}; expected bool, int, float, str, None, or a list or dict of them."
        )


def first(lines: list[str], most: int = 15) -> list[str]:
    """The lines of a long list that a message shows, and how many more there are."""
    return lines[:most] + ([f"\n  ... and {len(lines) - most} more"] if len(lines) > most else [])


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path; tuples become lists, as in JSON."""
    if isinstance(config, Mapping):
        leaves: dict[str, Any] = {}
        for key, value in config.items():
            leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return leaves
    return {prefix: list(config) if isinstance(config, tuple) else config}


def steps_of(config: Mapping[str, Any], num_examples: int) -> int:
    """The steps of a run on so many training images: those of its config, or its epochs in steps."""
    return config.get("steps") or max(1, round(config["epochs"] * num_examples / config["batch_size"]))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last words of dotted keys, as few as tell them apart: {"optim.lr": "lr", "a.x": "a.x", "b.x": "b.x"}.

    A key that is the end of another, as seed of data.seed, stands for itself.
    """
    tails = {key: [key.split(".", count)[-1] for count in range(key.count("."), -1, -1)] for key in keys}
    known = Counter(tail for several in tails.values() for tail in several)
    return {key: next((tail for tail in several if known[tail] == 1), key) for key, several in tails.items()}


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Paths at which two plain configs differ: those that change the numbers of a run, and those that cannot."""
    before, after = ({k: v for k, v in flatten(c).items() if v is not None} for c in (old, new))
    paths = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    free = [key for key in paths if any(key == f or key.startswith(f + ".") for f in FREE)]
    return [key for key in paths if key not in free], free
