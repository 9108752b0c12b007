"""Values that nobody means: of wrong types, negative, zero, huge, not a number, None, empty; and names with a letter too many."""

import contextlib
import copy
import math
import resource
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.config.factory import flatten_config

SECONDS = 30  # of computing that a case may take, and ten times as long with what it waits for
MEMORY = 4 * 2**30  # bytes of address space that a case may take besides what the process has

# By the type of the value that they replace; an unset key gets those of numbers and of strings.
NUMBERS = (-1, 0, -0.5, 0.5, 10**9, 10**12, 10**30, 1e308, math.nan, math.inf, True, None, "", "x", [], {})
VALUES: dict[type, tuple[Any, ...]] = {
    bool: (2, None, "", "maybe", math.nan, []),
    int: NUMBERS,
    float: NUMBERS,
    str: (0, 10**12, math.nan, None, "", "x" * 5000, "\0", "(", True, [], {}),
    list: (0, 10**12, math.nan, None, "", "x", [], [0], [None], {}, {"x": 1}),
    dict: (0, math.nan, None, "", "x", [], {}, {"type": None}, {"type": ""}),
    type(None): (-1, 0, 10**12, 1e308, math.nan, "", "x", "(", True, [], {}),
}


def values_for(value: Any) -> tuple[Any, ...]:
    """Return what to put in place of a value."""
    return VALUES[list if isinstance(value, tuple) else type(value)]


def places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every key of a config by its dotted path: parts, and what is in them."""
    found = dict(flatten_config(config))
    for path in list(found):
        parts = path.split(".")[:-1]
        for end in range(1, len(parts) + 1):
            node: Any = config
            for part in parts[:end]:
                node = node[part]
            found[".".join(parts[:end])] = node
    return {path: found[path] for path in sorted(found)}


def replaced(config: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a config with another value at a path."""
    result = copy.deepcopy(dict(config))
    *parents, last = path.split(".")
    node = result
    for part in parents:
        node = node[part]
    node[last] = copy.deepcopy(value)
    return result


def misspelt(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a copy of a config with one letter too many in a key."""
    result = copy.deepcopy(dict(config))
    *parents, last = path.split(".")
    node = result
    for part in parents:
        node = node[part]
    node[f"{last}x"] = node.pop(last)
    return result


@contextlib.contextmanager
def bounded(seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Raise TimeoutError after some seconds of computing, and MemoryError where memory is asked for beyond a bound."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    handlers = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
    signal.alarm(10 * seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in handlers.items():
            signal.signal(number, handler)


def shown(value: Any) -> str:
    """Return a value for the name of a test."""
    try:
        return repr(value)[:30]
    except ValueError:
        return "huge"
