"""Map between another library's arrays and this library's parameters with name tables, in both directions.

Throughout this package `theirs` is a name in the other library's file and `ours` a name in this library.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import einops
import numpy as np

from vit_jax.pretrained.pretrained import FlatParams
from vit_jax.types import UserError

MAX_LINES = 15  # arrays listed in an error message


@dataclasses.dataclass(frozen=True)
class Link:
    """One array of a file and the parameters it contains.

    `pattern` is the einops pattern from the array to the parameters stacked along a first axis `n`, or "" for the same
    array; `sizes` are the axis sizes it needs besides n.
    """

    theirs: str
    ours: tuple[str, ...]
    pattern: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the parameters in an array; raises EinopsError if its shape does not match."""
        if not self.pattern:
            return [array]
        return list(einops.rearrange(array, self.pattern, n=len(self.ours), **self.sizes))

    def write(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the array that contains the parameters."""
        if not self.pattern:
            return np.asarray(params[self.ours[0]])
        theirs, ours = self.pattern.split(" -> ")
        return einops.rearrange(np.stack([params[name] for name in self.ours]), f"{ours} -> {theirs}")


def same(theirs: str, ours: str) -> Link:
    """Rename an array."""
    return Link(theirs, (ours,))


def conv(theirs: str, ours: str) -> Link:
    """Link a PyTorch convolution weight to a kernel."""
    return Link(theirs, (ours,), "(n o) i h w -> n h w i o")


def norm(theirs: str, ours: str) -> list[Link]:
    """Link a PyTorch normalization layer with scale and bias."""
    return [same(f"{theirs}.weight", f"{ours}/scale"), same(f"{theirs}.bias", f"{ours}/bias")]


def dense(theirs: str, *ours: str) -> list[Link]:
    """Link a PyTorch linear layer to dense layers, concatenated along its outputs."""
    return _layer(theirs, ours, "(n o) i -> n i o", "(n o) -> n o")


def to_heads(theirs: str, ours: Sequence[str], num_heads: int, bias: bool = True) -> list[Link]:
    """Link a PyTorch linear layer to projections to heads: kernels (d, k, h) and biases (k, h)."""
    links = _layer(theirs, ours, "(n k h) d -> n d k h", "(n k h) -> n k h", k=num_heads)
    return links if bias else links[:1]


def from_heads(theirs: str, ours: str, num_heads: int) -> list[Link]:
    """Link a PyTorch linear layer to the projection from heads, kernel (k, h, d)."""
    return _layer(theirs, [ours], "(n d) (k h) -> n k h d", "(n d) -> n d", k=num_heads)


def _layer(theirs: str, ours: Sequence[str], kernel: str, bias: str, **sizes: int) -> list[Link]:
    return [
        Link(f"{theirs}.weight", tuple(f"{name}/kernel" for name in ours), kernel, sizes),
        Link(f"{theirs}.bias", tuple(f"{name}/bias" for name in ours), bias, sizes if "k" in bias else {}),
    ]


def shape_of(arrays: FlatParams, name: str, rank: int, origin: str) -> tuple[int, ...]:
    """Return the shape of an array; raises UserError if it is missing, empty or of another rank."""
    if name not in arrays:
        raise UserError(f"{origin} has no array {name}; expected one with {rank} axes. Is it a ViT, hybrid or Mixer?")
    found = arrays[name].shape
    if len(found) != rank or 0 in found:
        raise UserError(f"{origin} has {name} of shape {found}; expected {rank} non-empty axes.")
    return found


def to_ours(links: Sequence[Link], arrays: Mapping[str, np.ndarray], origin: str) -> FlatParams:
    """Convert a file's arrays to parameters; raises UserError listing missing and unexpected arrays."""
    expected = {link.theirs for link in links}
    missing, unexpected = sorted(expected - set(arrays)), sorted(set(arrays) - expected)
    if missing or unexpected:
        lines = [f"missing: {name}" for name in missing]
        lines += [f"unexpected: {name} {arrays[name].shape}" for name in unexpected]
        more = [f"... and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
        raise UserError(f"{origin} does not match any supported model:\n  " + "\n  ".join(lines[:MAX_LINES] + more))
    params: FlatParams = {}
    for link in links:
        try:
            params |= zip(link.ours, map(np.ascontiguousarray, link.read(arrays[link.theirs])), strict=True)
        except einops.EinopsError:
            raise UserError(
                f"{origin} has {link.theirs} of shape {arrays[link.theirs].shape}, which does not fit {', '.join(link.ours)}."
            ) from None
    return params


def to_theirs(links: Sequence[Link], params: Mapping[str, np.ndarray]) -> FlatParams:
    """Convert parameters to the arrays of a file; the links must cover every parameter."""
    unknown = set(params) - {name for link in links for name in link.ours}
    assert not unknown, unknown
    return {link.theirs: np.ascontiguousarray(link.write(params)) for link in links}
