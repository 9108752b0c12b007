"""Check values against type hints, for what users write in configs and specs."""

import inspect
import math
import sys
import types
import typing
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value fits a type hint; floats are finite, an int is a float too, a list a tuple; other hints fit all."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (int, float):
        kinds, most = ((int, float), sys.float_info.max) if hint is float else (int, math.inf)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= most
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint in (tuple, list) or origin in (tuple, list):
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and args and args[-1] is not Ellipsis:
            return len(value) == len(args) and all(map(fits, value, args))
        return all(fits(item, args[0]) for item in value) if args else True
    return isinstance(value, hint) if inspect.isclass(hint) else True


def cast(value: Any, hint: Any) -> Any:
    """Return a value that fits a hint as exactly that type: an int as a float, a list as a tuple or the other way round."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return cast(value, next(arg for arg in args if fits(value, arg)))
    if hint is float:
        return float(value)
    if origin is dict:
        return {key: cast(item, args[1]) for key, item in value.items()}
    if hint in (tuple, list) or origin in (tuple, list):
        fixed = origin is tuple and args[-1] is not Ellipsis
        kinds = args if fixed else (args or (Any,))[:1] * len(value)
        return (origin or hint)(map(cast, value, kinds))
    return value


def hint_name(hint: Any) -> str:
    """Return a type hint as a user reads it."""
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(hint_name, typing.get_args(hint)))
    names = {float: "finite float", types.NoneType: "None"}
    return names.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", ""))
