"""Reading a config file, and giving its keys other values from the command line."""

import ast
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from vit_jax.config import (
    ConfigError,
    check_plain,
    near,
    parameter_hints,
    parameters,
    plain,
    resolve,
    seam_of,
    shown,
    types_in,
)
from vit_jax.kinds import fits, hint_name
from vit_jax.types import UserError


def load(argument: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """The config of "FILE.py" or "FILE.py:ARG" with overrides (key, text) applied in order.

    Raises UserError where the file is missing or fails, and ConfigError where a key or a value is wrong.
    """
    name, _, arg = argument.partition(":")
    config = _run(_find(name), arg)
    for key, text in overrides:
        _override(config, key, text)
    for key in dict.fromkeys(key for key, _ in overrides if key.endswith(".type")):
        _check_retyped(config, key.removesuffix(".type"))
    return config


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path.resolve()
    nearby = [
        str(p) for p in (path.parent if path.parent.is_dir() else Path("configs")).glob("*.py") if p.stem[0] != "_"
    ]
    close = difflib.get_close_matches(name, nearby, n=3, cutoff=0.4)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else "give the path of a file with get_config(), e.g. configs/digits.py."
    )
    raise UserError(f"--config: no file {name!r}; {hint}")


def _run(path: Path, arg: str) -> ml_collections.ConfigDict:
    """Runs the file's get_config; an error in it is told with its line."""
    root = str(path.parent.parent)
    if root not in sys.path:  # a config imports its neighbours as configs.NAME
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UserError(
                f"--config: {path} has no get_config(); expected `def get_config(arg=...): return ConfigDict`."
            )
        config = get_config(arg) if arg else get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(path)
        raise UserError(f"--config: {where}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config: get_config() of {path} returned a {type(config).__name__}; expected an ml_collections ConfigDict."
        )
    return config


def _arguments_of(config: Any, path: str) -> dict[str, Any]:
    """Hints of the parameters that the seam at a config path takes, by name; empty where it is no seam."""
    package = seam_of(path)
    if package is None:
        return {}
    if "type" not in config:  # of a type that is known only later, such as that of the model in `init`
        return {name: hint for target in types_in(package).values() for name, hint in parameter_hints(target).items()}
    return parameter_hints(resolve(config["type"], package, path))


def _override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    *parents, last = key.split(".")
    node, path = config, ""
    for part in parents:
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            raise ConfigError(f"--config.{key}: unknown key {part!r}{near(part, known)}")
        node, path = node[part], f"{path}.{part}" if path else part
    if node is None:
        raise ConfigError(
            f"""--config.{key}: {path} is unset; give the whole part: --config.{path}="{{'{last}': ...}}"."""
        )
    if not isinstance(node, ml_collections.ConfigDict):
        raise ConfigError(f"--config.{key}: {path} is a {type(node).__name__} and has no keys.")
    arguments = _arguments_of(node, path)
    if last not in node and last not in arguments:
        raise ConfigError(f"--config.{key}: unknown key {last!r}{near(last, {*node, *arguments})}")
    hint = dict if seam_of(key) else arguments.get(last)
    current = None
    if last in node:
        kind = node.get_type(last)
        current = node[last]
        if isinstance(current, ml_collections.ConfigDict):
            hint = dict
        elif hint is None and kind is not type(None):
            hint = kind | None  # which stands for the default, or for nothing
    value = value_of(f"--config.{key}", text, hint)
    check_plain(value, f"--config.{key}")
    node.unlock()
    # A new reference, since ml_collections would refuse a value of another type than the one that stands there.
    if last in node:
        del node[last]
    node[last] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value


def value_of(flag: str, text: str, hint: Any) -> Any:
    """The value of a flag's text for a hinted kind: a Python literal where that fits, or the text itself."""
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if hint is dict:
        if isinstance(literal, dict):
            return literal
        raise ConfigError(f"""{flag} is {shown(text)}; expected a whole part, as in {flag}="{{'type': ...}}".""")
    if hint is str:
        return literal if isinstance(literal, str) else text
    if hint is None:
        return literal
    for value in (literal, text):
        if fits(value, hint):
            return float(value) if hint is float else value
    raise ConfigError(f"{flag} is {shown(text)}; expected {hint_name(hint)}.")


def _check_retyped(config: ml_collections.ConfigDict, path: str) -> None:
    """Raises ConfigError where a part whose type was changed has arguments that the new type lacks, or too few."""
    package = seam_of(path)
    if package is None:
        return
    node: Any = config
    for part in path.split("."):
        node = node[part]
    target = resolve(node["type"], package, path)
    given = getattr(importlib.import_module(package), "fill", dict)(plain(node))
    known = parameters(target)
    lacks = [key for key in given if key not in known and key != "type"]
    if lacks:
        raise ConfigError(
            f"--config.{path}.type={node['type']}: it has no argument {', '.join(lacks)}; it takes {', '.join(known)}. "
            f"""Replace the whole part: --config.{path}="{{'type': '{node["type"]}', ...}}"."""
        )
