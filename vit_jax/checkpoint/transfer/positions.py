"""Move pretrained position embeddings to another grid or to other prefix tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint.transfer.patches import Grid, resize_posemb
from vit_jax.layers.posemb import sincos2d
from vit_jax.types import PosembMethod

TABLE = "posemb/table"
TOKENS = ("cls", "dist", "registers")
Slot = tuple[str, int]  # the parameter of a prefix token, and the token's index in it


@dataclasses.dataclass(frozen=True)
class Positions:
    """The table of the new model, None if it cannot be made, and values that slots missing in it add to their tokens.

    detail: how the table differs from the pretrained one; empty if it is the same.
    """

    table: np.ndarray | None
    detail: str
    added: dict[str, np.ndarray]


def move(
    source: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    old: Grid | None,
    new: Grid | None,
    method: PosembMethod,
    *,
    fixed: bool,
) -> Positions:
    """Return the position embeddings of `source`, for a grid of `old` patches, in the model of `like` and `new`.

    On the same grid the network's function does not change: a slot missing in the new table is added to its token, and
    a slot missing in the source is zero. fixed: the source uses sincos2d, to which a learned table is then initialized.
    """
    details = []
    if fixed and TABLE in like and TABLE not in source and old is not None:
        source = {**source, TABLE: sincos2d(*old, like[TABLE].shape[2])[None]}
        details = ["from the fixed sincos2d"]
    had, wanted = _slots(source, old), _slots(like, new)
    if TABLE not in source:
        return Positions(None, "", {})
    pretrained = source[TABLE]
    values = {slot: pretrained[0, i] for i, slot in enumerate(had or ())}
    added = _as_tokens({slot: value for slot, value in values.items() if slot not in (wanted or ())}, source)
    if TABLE not in like or pretrained.shape[2] != like[TABLE].shape[2]:
        return Positions(None, "", added)
    if had is None or wanted is None or old is None or new is None:
        # With an unknown grid only the same number of slots can be used.
        same = pretrained.shape == tuple(like[TABLE].shape) and (old is None or new is None)
        return Positions(pretrained if same else None, "", {})
    if old != new:
        details.append(f"{old[0]}x{old[1]} to {new[0]}x{new[1]} patches, {method}")
        patches = resize_posemb(pretrained[:, len(had) :], old, new, 0, method)
    else:
        patches = pretrained[:, len(had) :]
    zero = np.zeros_like(pretrained[0, 0])
    table = np.stack([values.get(slot, zero) for slot in wanted] + list(patches[0]))[None]
    for what, slots in (("zero for", set(wanted) - set(had)), ("without", set(had) - set(wanted))):
        if slots:
            details.append(f"{what} {', '.join(sorted({name for name, _ in slots}))}")
    return Positions(table, "; ".join(details), added)


def _slots(leaves: Mapping[str, Any], grid: Grid | None) -> list[Slot] | None:
    """Return the prefix tokens that have slots in the table, in order; None if the grid does not determine them."""
    if TABLE not in leaves:
        return []
    tokens = [(name, i) for name in TOKENS if name in leaves for i in range(leaves[name].shape[1])]
    before = leaves[TABLE].shape[1] - grid[0] * grid[1] if grid else None
    return [] if before == 0 else tokens if before == len(tokens) else None


def _as_tokens(values: Mapping[Slot, np.ndarray], source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the values of some slots in the shape of their tokens' parameters."""
    added = {name: np.zeros_like(source[name]) for name, _ in values}
    for (name, index), value in values.items():
        added[name][0, index] = value
    return added
