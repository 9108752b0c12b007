import inspect
from collections.abc import Callable

from beartype import beartype

_COMPILED: dict[tuple, Callable] = {}


def once(function: Callable) -> Callable:
    """Check types at each call as beartype does, and compile the check once for each function of the source.

    A function inside another is a new one at each call of that, and beartype takes milliseconds to compile its check; done
    anew, this took a quarter of the suite. jaxtyping passes a stand-in with the signature only, so all of them share one.
    """
    signature = inspect.signature(function)
    key = function.__module__, function.__qualname__, signature
    try:
        hash(key)
    except TypeError:  # a default that has no hash
        return beartype(function)
    if key not in _COMPILED:
        _COMPILED[key] = beartype(function)
    return _COMPILED[key]
