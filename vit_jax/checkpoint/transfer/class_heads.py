"""Decide how to use a pretrained head in a model with other classes."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from vit_jax.types import UserError

Mode = Literal["auto", "keep", "reset", "map"]
Names = tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class HeadPlan:
    """Whether the head is kept, re-initialized, or takes the source's columns `old` as its columns `new`; and why."""

    mode: Literal["keep", "reset", "map"]
    why: str
    old: tuple[int, ...] = ()
    new: tuple[int, ...] = ()


def in_head(name: str) -> bool:
    """Return whether a parameter belongs to the heads or to the layer before them."""
    return name.partition("/")[0] in ("head", "head_dist", "rep")


def plan_head(mode: Mode, source: Mapping[str, Any], like: Mapping[str, Any], old: Names, new: Names) -> HeadPlan:
    """Decide what to do with the head of `source` in the model of `like`; old, new: their class names, if known.

    Raises UserError if the source's head cannot be used as `mode` requires.
    """
    if mode == "reset":
        return HeadPlan("reset", "init.head='reset'")
    obstacle = _obstacle(source, like)
    if obstacle:
        if mode == "auto":
            return HeadPlan("reset", f"auto: {obstacle}")
        raise UserError(f"init.head={mode!r} needs the pretrained head, but {obstacle}. Use init.head='reset'.")
    sizes = [int(leaves["head/kernel"].shape[-1]) for leaves in (source, like)]
    for which, names, size in zip(("pretrained model", "data"), (old, new), sizes, strict=True):
        if names is not None and len(names) != size:
            raise UserError(f"The {which} names {len(names)} classes; its head has {size}.")
    why = ""
    if mode == "auto":
        mode, why = _choose(sizes, old, new)
    if mode == "map":
        return _map(old, new, why)
    if mode == "keep":
        _check_same(sizes, old, new)
    return HeadPlan(mode, why)


def _obstacle(source: Mapping[str, Any], like: Mapping[str, Any]) -> str:
    """Return why the pretrained head cannot be used for any classes; empty if it can."""
    if "head/kernel" not in source:
        return "the pretrained model has none"
    if "head/kernel" not in like:
        return "the model here has none"
    old, new = (x["rep/kernel"].shape[-1] if "rep/kernel" in x else None for x in (source, like))
    if old != new:
        there, here = (f"one of {width}" if width else "none" for width in (old, new))
        return f"it reads another layer: rep_size makes {there} in the pretrained model and {here} here"
    return ""


def _choose(sizes: list[int], old: Names, new: Names) -> tuple[Literal["keep", "reset", "map"], str]:
    """Return the mode that "auto" selects, and why."""
    counts = f"{sizes[0]} classes in the pretrained model, {sizes[1]} here"
    if old is None or new is None:
        if sizes[0] == sizes[1]:
            return "keep", f"auto: {sizes[1]} classes on both sides, whose names are not all known"
        return "reset", f"auto: {counts}"
    if old == new:
        return "keep", f"auto: the same {len(new)} classes"
    if collections.Counter(old) == collections.Counter(new):
        return "map", "auto: the same classes in another order, "
    shared = len(set(old) & set(new))
    return "reset", f"auto: other classes ({counts}, {shared} names in common)"


def _check_same(sizes: list[int], old: Names, new: Names) -> None:
    """Raise UserError if the classes of both sides are known to differ."""
    remedy = "Use init.head='reset', or 'map' if both sides name their classes."
    if sizes[0] != sizes[1]:
        raise UserError(
            f"init.head='keep' with {sizes[0]} classes in the pretrained model and {sizes[1]} here. {remedy}"
        )
    if old is None or new is None or old == new:
        return
    different = [i for i in range(len(new)) if old[i] != new[i]]
    examples = "; ".join(f"class {i} is {old[i]!r} there and {new[i]!r} here" for i in different[:3])
    raise UserError(f"init.head='keep', but {len(different)} of {len(new)} classes differ: {examples}. {remedy}")


def _map(old: Names, new: Names, why: str) -> HeadPlan:
    """Return the plan by the names that are unique on both sides."""
    for which, names in (("pretrained model", old), ("data", new)):
        if names is None:
            raise UserError(
                f"init.head='map' needs the names of the classes; the {which} has none. Use init.head='reset'."
            )
    assert old is not None
    assert new is not None
    counts = [collections.Counter(names) for names in (old, new)]
    unique = [
        {name: i for i, name in enumerate(names) if count[name] == 1}
        for names, count in zip((old, new), counts, strict=True)
    ]
    shared = [name for name in unique[1] if name in unique[0]]
    if not shared:
        raise UserError(
            f"init.head='map', but no class has the same name: {old[0]!r}, ... in the pretrained model and {new[0]!r}, ... here. "
            "Use init.head='reset'."
        )
    why += f"{len(shared)} of {len(new)} classes by name"
    return HeadPlan("map", why, tuple(unique[0][name] for name in shared), tuple(unique[1][name] for name in shared))


def mapped(plan: HeadPlan, pretrained: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Return a kernel or bias of the head with the columns that the plan takes from the pretrained one."""
    columns = fresh.copy()
    columns[..., list(plan.new)] = pretrained[..., list(plan.old)]
    return columns
