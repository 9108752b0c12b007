import inspect
from collections.abc import Callable

from beartype import beartype

_COMPILED: dict[tuple[str, ...], Callable] = {}


def once(function: Callable) -> Callable:
    """Check types at each call as beartype does, and compile the check once for each function of the source.

    A function inside another is a new one at each call of that, and beartype takes milliseconds to compile its check; done
    anew, this took a quarter of the suite. jaxtyping passes a stand-in with the signature only, so all of them share one.
    """
    # By its text, since the type of an array's shape that is written inside a function is another type at each call.
    key = function.__module__, function.__qualname__, str(inspect.signature(function))
    if key not in _COMPILED:
        _COMPILED[key] = beartype(function)
    return _COMPILED[key]
