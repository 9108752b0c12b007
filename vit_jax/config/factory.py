"""Build the parts that a config names.

A seam is a key of the config that chooses a part: `dict(type="vit.ViT", **arguments)`. SEAMS maps each seam to the package of
its types; KIND in that package is the class that the types must subclass or return.
"""

import difflib
import fnmatch
import importlib
import inspect
import os
import pkgutil
import sys
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from vit_jax.config.hints import BOUNDS, cast, fits, hint_name, hints_of
from vit_jax.types import Steps, UserError

SEAMS = {
    "model": "vit_jax.models",
    "model.stem": "vit_jax.models",
    "model.head": "vit_jax.models.heads",
    "model.rope": "vit_jax.layers.rope",
    "task": "vit_jax.tasks",
    "task.text": "vit_jax.models",
    "task.head": "vit_jax.models.dense_heads",
    "task.mix": "vit_jax.tasks.mixing",
    "task.gram": "vit_jax.tasks.gram",
    "grad": "vit_jax.grads",
    "grad.inner": "vit_jax.grads",
    "optim.rule": "vit_jax.optim.rules",
    "optim.schedule": "vit_jax.optim.schedules",
    "data.source": "vit_jax.data.sources",
    "evals.*": "vit_jax.evals",
    "evals.*.source": "vit_jax.data.sources",
    "evals.*.train": "vit_jax.data.sources",
}

# Keys in addition to the arguments of a part, by its package.
BESIDE = {"vit_jax.evals": ("every",)}


class ConfigError(UserError, TypeError):
    """A wrong config key, type or value; the message begins with its path in the config."""


def near(word: str, known: Iterable[str]) -> str:
    """Return the hint "; did you mean ...?" with the known words closest to `word`, or "; expected one of ..."."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; expected one of: {', '.join(known)}." if known else "."


def seam_of(path: str) -> str | None:
    """Return the package of the types at a config path, or None if the path is not a seam."""
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
    """Return the modules of a seam's package, without modules that belong to another seam, such as models.heads."""
    infos = pkgutil.iter_modules(getattr(importlib.import_module(package), "__path__", []))
    return [info.name for info in infos if f"{package}.{info.name}" not in SEAMS.values()]


def types_in(package: str) -> dict[str, Any]:
    """Return every type of a seam by name, from the package and its modules."""
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
    """Resolve a type name: "module.Name" in the seam's package, or "absolute.module:Name" if `trust` allows it."""
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
            f"{path}.type is {type_name!r}, code from outside vit_jax, which is imported only if you trust its author: "
            "with --trust of evaluate, predict and convert, init.trust=True of a config, or trust=True of vit_jax.load."
        )
    if os.getcwd() not in sys.path:  # last, so that it hides no installed module
        sys.path.append(os.getcwd())
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}.type: cannot import {type_name!r} ({error}); expected 'package.module:Name', a module that Python finds or "
            "a file next to the config or in this folder; PYTHONPATH=FOLDER names another folder."
        ) from None
    if not _makes(target, kind):
        what = getattr(kind, "__name__", str(kind))
        missing = sorted(getattr(target, "__abstractmethods__", ()))
        found = f"has no {' and no '.join(missing)}" if missing else f"is {quoted(target)}"
        raise ConfigError(
            f"{path}.type: {type_name!r} {found}; expected a subclass of {what} ({getattr(kind, '__module__', '')}) "
            "with all its methods, or a function annotated to return one."
        )
    return target


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a target that a config may set."""
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {name: p for name, p in inspect.signature(target).parameters.items() if p.kind in keyword}
    # Flax adds these two to every module.
    return {k: p for k, p in found.items() if not (hasattr(target, "apply") and k in ("parent", "name"))}


def parameter_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of the parameters that a config may set; Any for a parameter without a hint."""
    hints = hints_of(target)
    return {name: hints.get(name, Any) for name in parameters(target)}


def call(path: str, target: Callable[..., Any], arguments: Mapping[str, Any], /, **extra: Any) -> Any:
    """Return target(**arguments, **extra) after checking names and types of the arguments; None means the default.

    Raises ConfigError, naming the config path.
    """
    allowed = parameters(target)
    given = check_arguments(path, target, arguments, extra)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    lacks = [key for key in extra if key not in allowed and not takes_any]
    if lacks:
        raise ConfigError(
            f"{path}: {target.__qualname__} must take {', '.join(lacks)}, which is always passed; add it to its parameters."
        )
    given |= extra
    missing = [key for key, p in allowed.items() if p.default is p.empty and key not in given]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}, which {target.__qualname__} needs.")
    return target(**given)


def check_arguments(
    path: str, target: Callable[..., Any], arguments: Mapping[str, Any], extra: Collection[str] = ()
) -> dict[str, Any]:
    """Return the arguments that are not None, cast to the target's types; `extra` names arguments from elsewhere.

    Raises ConfigError, naming the config path.
    """
    allowed, hints = parameters(target), parameter_hints(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    given = {key: value for key, value in arguments.items() if value is not None}
    for key, value in given.items():
        if (key not in allowed and not takes_any) or key in extra:
            raise ConfigError(f"{path}.{key}: unknown key{near(key, set(allowed) - set(extra))}")
        if key in hints:
            if not fits(value, hints[key]):
                raise ConfigError(f"{path}.{key} is {quoted(value)}; expected {hint_name(hints[key])}.")
            given[key] = cast(value, hints[key])
    return given


def check_part(path: str, spec: Any) -> None:
    """Raise ConfigError if the type or arguments at a config path, or of nested parts, are wrong.

    Builds nothing, and ignores missing arguments, which may come from elsewhere.
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


def quoted(value: Any, most: int = 200) -> str:
    """Return a value as messages show it, truncated if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print ints of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def build(spec: Any, path: str, /, *, trust: bool = True, **extra: Any) -> Any:
    """Build the part that the spec at a config path names from its arguments and `extra`, nested parts first."""
    package = seam_of(path)
    assert package is not None, path
    if not isinstance(spec, Mapping | ml_collections.ConfigDict) or "type" not in spec:
        raise ConfigError(f"{path} is {quoted(to_plain(spec))}; expected dict(type=..., ...).")
    spec = dict(to_plain(spec))
    target = resolve(spec["type"], package, path, trust)
    fill = getattr(importlib.import_module(package), "fill", dict)
    arguments = {
        key: build(value, f"{path}.{key}", trust=trust) if value is not None and seam_of(f"{path}.{key}") else value
        for key, value in fill(spec).items()
        if key != "type"
    }
    try:
        made = call(path, target, arguments, **extra)
        if package == "vit_jax.data.sources" and not isinstance(getattr(made, "fields", None), Mapping):
            raise UserError(
                f"{target.__qualname__} has no fields; expected a dict that says what each key of an example is, such as "
                'fields = {"image": Image(), "label": Label(names)} of vit_jax.data.source.'
            )
        return made
    except UserError as error:
        if isinstance(error, ConfigError) or package != "vit_jax.data.sources":
            raise
        # A run has several sources, which do not know their config path.
        raise UserError(f"{path}: {error}") from error


def build_task(
    task: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    class_names: tuple[str, ...],
    trust: bool = True,
    extra: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Build the task of a config with its model, which has one output per class if the task takes class_names.

    given: arguments passed if they are not None and the task's signature has them, such as spec, fields and steps.
    extra: arguments that are always passed.
    """
    takes = parameters(resolve(task.get("type"), "vit_jax.tasks", "task", trust))
    names = class_names if "class_names" in takes else ()
    given = {key: value for key, value in given.items() if key in takes and value is not None}
    given |= {"class_names": names} if "class_names" in takes else {}
    network = resolve(model.get("type"), "vit_jax.models", "model", trust)
    outputs = {"num_classes": len(names)} if "num_classes" in parameters(network) else {}
    call_parameters = (
        list(inspect.signature(network.__call__).parameters.values())[1:] if inspect.isclass(network) else []
    )
    if inspect.isclass(network) and not any(p.kind is not p.KEYWORD_ONLY for p in call_parameters):
        raise ConfigError(
            f"model.type: {network.__qualname__}.__call__ takes no images; expected __call__(self, images)."
        )
    module = build(model, "model", trust=trust, **outputs)
    return build(task, "task", trust=trust, model=module, **given, **(extra or {}))


def to_plain(value: Any) -> Any:
    """Return a config as plain dictionaries with its references resolved."""
    try:
        return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
    except TypeError as error:  # ConfigDict sorts its keys
        raise ConfigError(f"config has a key that is not a string ({error}).") from None


def check_plain(config: Any, path: str = "config") -> None:
    """Raise ConfigError if JSON cannot hold a config: for keys other than strings and values other than plain data.

    Numbers must be finite and in the range of float32.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            if not isinstance(key, str) or not key or "." in key:
                raise ConfigError(f"{path} has the key {key!r}; expected a string without dots.")
            check_plain(value, f"{path}.{key}")
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            check_plain(value, f"{path}[{index}]")
    elif config is not None and type(config) not in (bool, int, float, str):
        raise ConfigError(
            f"{path} is a {type(config).__name__}; expected bool, int, float, str, None, or a list or dict of them."
        )
    elif type(config) in BOUNDS and not fits(config, float):
        raise ConfigError(f"{path} is {quoted(config)}; expected a finite number of at most {BOUNDS[float].most}.")


def first(lines: list[str], most: int = 15) -> list[str]:
    """Return the first lines of a long list for a message, and how many more there are."""
    return lines[:most] + ([f"\n  ... and {len(lines) - most} more"] if len(lines) > most else [])


def flatten_config(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves by dotted path; tuples become lists, as in JSON."""
    if isinstance(config, Mapping):
        leaves: dict[str, Any] = {}
        for key, value in config.items():
            leaves |= flatten_config(value, f"{prefix}.{key}" if prefix else str(key))
        return leaves
    return {prefix: list(config) if isinstance(config, tuple) else config}


def steps_of(config: Mapping[str, Any], num_examples: int) -> int:
    """Return the steps of a run: `steps` of its config, or its `epochs` in steps for this many training examples."""
    steps = config.get("steps") or max(1, round(config["epochs"] * num_examples / config["batch_size"]))
    if not fits(steps, Steps):
        raise ConfigError(
            f"config.epochs is {config['epochs']}, which is {steps:.3g} steps; expected fewer than 2**31."
        )
    return steps


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique suffixes of dotted keys: {"optim.lr": "lr", "a.x": "a.x", "b.x": "b.x"}.

    A key that is a suffix of another, such as seed of data.seed, is kept whole.
    """
    tails = {key: [key.split(".", count)[-1] for count in range(key.count("."), -1, -1)] for key in keys}
    known = Counter(tail for several in tails.values() for tail in several)
    return {key: next((tail for tail in several if known[tail] == 1), key) for key, several in tails.items()}
