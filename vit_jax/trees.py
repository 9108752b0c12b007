"""Trees of arrays as flat dictionaries: "encoder/block_0/attn/query/kernel" -> leaf."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = TypeVar("Tree")


def name_of(path: tuple[Any, ...]) -> str:
    """Return a tree path as keys joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(like: Tree, flat: Mapping[str, Any]) -> Tree:
    """Return the leaves of `flat` in the structure of `like`, which has the same names."""
    return map_named(lambda name, _: flat[name], like)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dictionary whose leaves have these names."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        place = tree
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = leaf
    return tree


def split(tree: Mapping[str, Any], belongs: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a tree into two nested dictionaries: the leaves whose name satisfies `belongs`, and the rest."""
    flat = flatten(tree)
    return (
        nest({name: leaf for name, leaf in flat.items() if belongs(name)}),
        nest({name: leaf for name, leaf in flat.items() if not belongs(name)}),
    )


def join(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Join two trees that `split` returned."""
    return nest(flatten(one) | flatten(other))


def map_named(function: Callable[..., Any], tree: Tree, *rest: Any) -> Tree:
    """Map function(name, leaf, ...) over a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(name_of(path), *leaves), tree, *rest)


def global_norm(tree: Any) -> Float[Array, ""]:
    """Return the Euclidean norm of all leaves together, summed in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return lines that describe how names and shapes in `found` differ from `expected`; leaves have .shape."""
    lines = [f"missing: {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    lines += [f"left over: {name} {tuple(found[name].shape)}" for name in found if name not in expected]
    lines += [
        f"shape: {name} is {tuple(found[name].shape)}, expected {tuple(leaf.shape)}"
        for name, leaf in expected.items()
        if name in found and tuple(found[name].shape) != tuple(leaf.shape)
    ]
    return lines
