"""Check values that users write in configs and specs against type hints."""

import inspect
import types
import typing
from typing import Any

from vit_jax.types import Between

# For numbers without bounds of their own: the ranges of int32 and float32, the types that devices compute with.
BOUNDS = {int: Between(1 - 2**31, 2**31 - 1), float: Between(-3.4e38, 3.4e38)}


def hints_of(target: Any) -> dict[str, Any]:
    """Return the type hints of the arguments of a function or class, including bounds."""
    return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value fits a type hint; an int also fits float, a list fits tuple; unknown hints fit all values.

    Numbers must be finite, and within the bounds of their hint or else BOUNDS.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Annotated:
        bounds = _bounds(hint)
        return _is_number(value, args[0], bounds) if bounds else fits(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (int, float):
        return _is_number(value, hint, [BOUNDS[hint]])
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint in (tuple, list) or origin in (tuple, list):
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and args and args[-1] is not Ellipsis:
            return len(value) == len(args) and all(map(fits, value, args))
        return all(fits(item, args[0]) for item in value) if args else True
    return isinstance(value, hint) if inspect.isclass(hint) else True


def _is_number(value: Any, kind: type, bounds: list[Between]) -> bool:
    kinds = (int, float) if kind is float else int
    is_one = isinstance(value, kinds) and not isinstance(value, bool)
    return is_one and all(bound.least <= value <= bound.most for bound in bounds)


def _bounds(hint: Any) -> list[Between]:
    return [extra for extra in typing.get_args(hint)[1:] if isinstance(extra, Between)]


def cast(value: Any, hint: Any) -> Any:
    """Convert a value that fits a hint to exactly that type: an int to a float, a list to a tuple or vice versa."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return cast(value, next(arg for arg in args if fits(value, arg)))
    if origin is typing.Annotated:
        return cast(value, args[0])
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
    """Return a readable name of a type hint."""
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(hint_name, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Annotated:
        ranges = [f"from {bound.least:,} to {bound.most:,}" for bound in _bounds(hint)]
        return " ".join([hint_name(typing.get_args(hint)[0]), *ranges])
    names = {float: "finite float", types.NoneType: "None"}
    return names.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", ""))
