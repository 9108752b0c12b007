"""Count floating-point operations of a jaxpr, before any compiler optimization."""

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# Opaque calls, such as library kernels, whose operations cannot be counted.
OPAQUE = ("custom_call", "ffi_call", "pallas_call", "dot_product_attention_fwd", "dot_product_attention_bwd")


def count(function: Callable[..., Any], *arguments: Any) -> tuple[float, dict[str, int]]:
    """Count the FLOPs of matrix products and convolutions in function(*arguments), and the calls of each opaque primitive.

    Arguments may be shapes. A multiply-add is two operations; elementwise operations, below 1 % of a network, are
    ignored. The body of a scan counts once per iteration, a cond counts as its costliest branch, and the body of a
    while loop, whose length is unknown, counts once. For fused attention kernels, count the same network with plain
    attention.
    """
    opaque: collections.Counter[str] = collections.Counter()
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, opaque), dict(opaque)


def by_scope(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Count FLOPs by name scope; Flax's scopes are module paths, such as "ViT/encoder/block_0/attn/query"."""
    found: dict[str, float] = {}

    def add(jaxpr: core.Jaxpr, outer: str, times: int) -> None:
        for equation in jaxpr.eqns:
            scope = f"{outer}/{equation.source_info.name_stack}"
            inner = list(_inner_jaxprs(equation))
            if inner and equation.primitive.name not in ("cond", *OPAQUE):
                for one in inner:
                    add(one, scope, times * equation.params.get("length", 1))
            elif flops := times * _of_equation(equation, collections.Counter()):
                found[scope.strip("/")] = found.get(scope.strip("/"), 0.0) + flops

    add(jax.make_jaxpr(function)(*arguments).jaxpr, "", 1)
    return found


def _of_jaxpr(jaxpr: core.Jaxpr, opaque: collections.Counter[str]) -> float:
    return math.fsum(_of_equation(equation, opaque) for equation in jaxpr.eqns)


def _of_equation(equation: Any, opaque: collections.Counter[str]) -> float:
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
        opaque[name] += 1
        return 0.0
    inner = [_of_jaxpr(jaxpr, opaque) for jaxpr in _inner_jaxprs(equation)]
    if name == "cond":
        return max(inner, default=0.0)
    return math.fsum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inner_jaxprs(equation: Any) -> Iterator[core.Jaxpr]:
    """Yield the jaxprs in an equation's parameters."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
