"""Tables that say which array of another format holds which of ours, read in both directions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vit_jax.types import UserError

Flat = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Link:
    """One array of theirs and the arrays of ours that it holds, with the two functions between them."""

    theirs: str
    ours: tuple[str, ...]
    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


def same(theirs: str, ours: str) -> Link:
    """The same array under another name."""
    return Link(theirs, (ours,), lambda x: [x], lambda xs: xs[0])


def transposed(theirs: str, ours: str, axes: Sequence[int]) -> Link:
    """An array whose axes stand in another order: ours is theirs.transpose(axes)."""
    back = np.argsort(axes)
    return Link(theirs, (ours,), lambda x: [x.transpose(axes)], lambda xs: xs[0].transpose(back))


def linear(theirs: str, ours: str) -> Link:
    """PyTorch's linear weight (out, in) and our kernel (in, out)."""
    return transposed(theirs, ours, (1, 0))


def conv(theirs: str, ours: str) -> Link:
    """PyTorch's convolution weight (out, in, h, w) and our kernel (h, w, in, out)."""
    return transposed(theirs, ours, (2, 3, 1, 0))


def to_ours(links: Sequence[Link], arrays: Mapping[str, np.ndarray], where: str) -> Flat:
    """Our arrays out of theirs.

    Raises UserError, beginning with `where`, that lists what the links lack and what they do not know.
    """
    known = {link.theirs for link in links}
    missing = sorted(known - set(arrays))
    left_over = sorted(set(arrays) - known)
    if missing or left_over:
        lines = [f"missing: {name}" for name in missing] + [
            f"not understood: {name} {arrays[name].shape}" for name in left_over
        ]
        more = [f"... and {len(lines) - 15} more"] if len(lines) > 15 else []
        raise UserError(f"{where} does not hold the weights of one of our models:\n  " + "\n  ".join(lines[:15] + more))
    params: Flat = {}
    for link in links:
        try:
            params |= zip(link.ours, map(np.ascontiguousarray, link.read(arrays[link.theirs])), strict=True)
        except (ValueError, IndexError):
            raise UserError(
                f"{where} has {link.theirs} of shape {arrays[link.theirs].shape}, which does not fit {', '.join(link.ours)}."
            ) from None
    return params


def to_theirs(links: Sequence[Link], params: Mapping[str, np.ndarray]) -> Flat:
    """Their arrays out of ours; `links` must know every one of ours."""
    unknown = set(params) - {name for link in links for name in link.ours}
    assert not unknown, unknown
    return {
        link.theirs: np.ascontiguousarray(link.write([np.asarray(params[name]) for name in link.ours]))
        for link in links
    }
