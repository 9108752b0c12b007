"""Read a config file, and override its keys from the command line."""

import ast
import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from vit_jax.config import other_libraries
from vit_jax.config.factory import (
    BESIDE,
    ConfigError,
    check_plain,
    near,
    parameter_hints,
    parameters,
    quoted,
    resolve,
    seam_of,
    to_plain,
    types_in,
)
from vit_jax.config.hints import fits, hint_name
from vit_jax.config.schema import KEYS
from vit_jax.types import UserError

# The folder that contains vit_jax and its recipes, configs/, in a checkout and in an installation.
ROOT = Path(__file__).parents[2]


def load(argument: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """Load the config of "FILE.py" or "FILE.py:ARG" and apply overrides (key, text) in order.

    Raises UserError if the file is missing or raises, and ConfigError if a key or a value is wrong.
    """
    config = run(argument, "get_config", ml_collections.ConfigDict, "--config", "configs/digits.py")
    for key, text in overrides:
        _override(config, key, text)
    given = {key for key, _ in overrides}
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if key in given and other not in given:  # the given one replaces the other one of the config
            del config[other]
            config[other] = None
    for key in dict.fromkeys(key for key, _ in overrides if key.endswith(".type")):
        _check_retyped(config, key.removesuffix(".type"))
    return config


def run(argument: str, function: str, kind: type, what: str, example: str) -> Any:
    """Call a function in "FILE.py", or with ARG in "FILE.py:ARG", and return its result, an instance of `kind`.

    what: the name of the argument in messages. example: a valid file. Raises UserError if the file is missing or
    raises.
    """
    name, arg = _split(argument)
    path = _find(name, function, what, example)
    root = str(path.parent.parent)
    if root not in sys.path:  # a config imports its neighbours as configs.NAME
        sys.path.insert(0, root)
    if str(path.parent) not in sys.path:  # and names parts in a file next to it as NAME:Part
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"{function}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{what}: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        target = getattr(module, function, None)
        if target is None:
            raise UserError(
                f"{what}: {path} has no {function}(); expected `def {function}(arg=...): return {kind.__name__}`."
            )
        result = target(arg) if arg else target()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(path)
        raise UserError(f"{what}: {where}: {type(error).__name__}: {error}") from None
    if not isinstance(result, kind):
        raise UserError(
            f"{what}: {function}() of {path} returned a {type(result).__name__}; expected the {kind.__name__} of "
            f"{kind.__module__.partition('.')[0]}."
        )
    return result


def _split(argument: str) -> tuple[str, str]:
    """Split "FILE.py:ARG" into file and argument; a folder of the file may have a colon in its name."""
    match = re.fullmatch(r"(.*?\.py)(?::(.*))?", argument, flags=re.DOTALL)
    name, arg = (match[1], match[2] or "") if match else (argument.partition(":")[0], argument.partition(":")[2])
    return os.path.expanduser(name), arg


def _find(name: str, function: str, what: str, example: str) -> Path:
    path = Path(name)
    for place in (path, ROOT / path):  # the recipes of vit_jax are found from any folder
        if os.path.isfile(place) and (
            place is path or path.parts[0] == "configs"
        ):  # also False for a name that no file can have
            return place.resolve()
    if len(path.parts) == 1 and os.path.isfile(ROOT / "configs" / path):
        raise UserError(f"{what}: no file {quoted(name)}; did you mean configs/{name}?")
    nearby = [
        str(p)
        for p in (path.parent if os.path.isdir(path.parent) else Path("configs")).glob("*.py")
        if p.stem[0] != "_"
    ]
    close = difflib.get_close_matches(name, nearby, n=3, cutoff=0.4)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"give the path of a file with {function}(), e.g. {example}."
    )
    raise UserError(f"{what}: no file {quoted(name)}; {hint}")


def _arguments_of(config: Any, path: str) -> dict[str, Any]:
    """Return the type hints of the parameters that the seam at a config path takes; empty if it is not a seam."""
    package = seam_of(path)
    if package is None:
        return {}
    if "type" not in config:  # the type is known only later, such as the type of the model in `init`
        return {name: hint for target in types_in(package).values() for name, hint in parameter_hints(target).items()}
    return parameter_hints(resolve(config["type"], package, path))


def _override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    *parents, last = key.split(".")
    node, path = config, ""
    for part in parents:
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            if not path:  # below a part of ours, the name of another part is misspelt
                _hint_foreign(key, text)
            known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            raise ConfigError(f"--config.{key}: unknown key {part!r}{near(part, known)}")
        node, path = node[part], f"{path}.{part}" if path else part
    if node is None:
        raise ConfigError(
            f"""--config.{key}: {path} is unset; give the whole part: --config.{path}="{{'{last}': ...}}"."""
        )
    if not isinstance(node, ml_collections.ConfigDict):
        raise ConfigError(f"--config.{key}: {path} is a {type(node).__name__} and has no keys; set it as a whole.")
    arguments = _arguments_of(node, path)
    if key == "model.variant" and "type" in node:
        arguments["variant"] = str
        _make_way(node, text)
    if last not in node and last not in arguments:
        _hint_foreign(key, text)
        raise ConfigError(f"--config.{key}: unknown key {last!r}{near(last, {*node, *arguments})}")
    if path == "evals" and text == "None":  # without this evaluator
        node.unlock()
        del node[last]
        return
    declared = KEYS[last].kind if not path and last in KEYS else arguments.get(last)
    hint = dict if seam_of(key) else arguments.get(last)
    current = None
    if last in node:
        kind = node.get_type(last)
        current = node[last]
        if isinstance(current, ml_collections.ConfigDict):
            hint = dict
        elif hint is None and kind is not type(None):
            hint = (declared or kind) | None  # None is the default, or unset
    without = text.lower() == "none" and declared is not None and fits(None, declared)
    value = None if without else value_of(f"--config.{key}", text, hint)
    check_plain(value, f"--config.{key}")
    node.unlock()
    # Use a new reference, since ml_collections rejects a value that differs in type from the current one.
    if last in node:
        del node[last]
    node[last] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value


def _make_way(model: ml_collections.ConfigDict, variant: str) -> None:
    """Delete the fields of a model that a variant sets, since explicit fields take precedence."""
    fill = importlib.import_module("vit_jax.models").fill
    model.unlock()
    for field in fill({"type": model.type, "variant": variant}).keys() & set(model) - {"type"}:
        del model[field]


def _hint_foreign(key: str, text: str) -> None:
    """Raise ConfigError if an unknown key is another library's, with its name here."""
    hint = other_libraries.key_hint(key, text) or other_libraries.key_hint(key.rpartition(".")[2], text)
    if hint and not hint.startswith(f"--config.{key}="):
        raise ConfigError(f"--config.{key}: unknown key; expected {hint}")


def value_of(flag: str, text: str, hint: Any) -> Any:
    """Parse a flag's text for a type hint: a Python literal if that fits, or the text itself."""
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if hint is dict:
        if isinstance(literal, dict):
            return literal
        if flag == "--config.model" and (hint := other_libraries.model_hint(text)):
            raise ConfigError(f"{flag} is {quoted(text)}{hint.replace('model.variant', '--config.model.variant')}.")
        raise ConfigError(f"""{flag} is {quoted(text)}; expected a whole part, such as {flag}="{{'type': ...}}".""")
    if hint is str:
        return literal if isinstance(literal, str) else text
    if hint is None:
        return literal
    for value in (literal, text):
        if fits(value, hint):
            return float(value) if hint is float else value
    raise ConfigError(f"{flag} is {quoted(text)}; expected {hint_name(hint)}.")


def _check_retyped(config: ml_collections.ConfigDict, path: str) -> None:
    """Raise ConfigError if a part whose type was changed has arguments that the new type does not take."""
    package = seam_of(path)
    if package is None:
        return
    node: Any = config
    for part in path.split("."):
        node = node[part]
    target = resolve(node["type"], package, path)
    given = getattr(importlib.import_module(package), "fill", dict)(to_plain(node))
    known = parameters(target)
    lacks = [key for key in given if key not in known and key not in ("type", *BESIDE.get(package, ()))]
    if lacks:
        raise ConfigError(
            f"--config.{path}.type={node['type']}: it has no argument {', '.join(lacks)}; it takes {', '.join(known)}. "
            f"""Replace the whole part: --config.{path}="{{'type': '{node["type"]}', ...}}"."""
        )
