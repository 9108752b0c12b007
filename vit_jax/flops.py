"""Floating-point operations counted from what is computed, not from what a compiler makes of it."""

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# Calls whose inside is not seen, such as kernels of libraries: their operations are not counted.
OPAQUE = ("custom_call", "ffi_call", "pallas_call", "dot_product_attention_fwd", "dot_product_attention_bwd")


def count(function: Callable[..., Any], *arguments: Any) -> tuple[float, dict[str, int]]:
    """The FLOPs of function(*arguments) in matrix products and convolutions, and how often something uncounted is called.

    Arguments may be shapes. A multiply-add is two operations; all that is elementwise, below 1 % of a network, is left out. The
    body of a scan counts as often as it runs, of a cond the costliest branch, a while loop, whose length is not known, once.
    Attention of a fused kernel is uncounted: count the same network with plain attention.
    """
    uncounted: collections.Counter[str] = collections.Counter()
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, uncounted), dict(uncounted)


def _of_jaxpr(jaxpr: core.Jaxpr, uncounted: collections.Counter[str]) -> float:
    return math.fsum(_of_equation(equation, uncounted) for equation in jaxpr.eqns)


def _of_equation(equation: Any, uncounted: collections.Counter[str]) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        groups = equation.params["batch_group_count"]
        return 2.0 * math.prod(output) * math.prod(kernel) / outputs / groups
    if name in OPAQUE:
        uncounted[name] += 1
        return 0.0
    insides = [_of_jaxpr(inside, uncounted) for inside in _insides(equation)]
    if name == "cond":
        return max(insides, default=0.0)
    return math.fsum(insides) * (equation.params["length"] if name == "scan" else 1)


def _insides(equation: Any) -> Iterator[core.Jaxpr]:
    """The programs that an equation calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
