"""Name tables between another library's arrays and this library's parameters, usable in both directions.

Throughout this package `theirs` is a name in the other library's file and `ours` a name in this library.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vit_jax.pretrained.pretrained import FlatParams
from vit_jax.types import UserError

MAX_LINES = 15  # arrays listed in an error message


@dataclasses.dataclass(frozen=True)
class Link:
    """One array of a file, the parameters it contains, and the conversions between them."""

    theirs: str
    ours: tuple[str, ...]
    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


def same(theirs: str, ours: str) -> Link:
    """Rename an array."""
    return Link(theirs, (ours,), lambda x: [x], lambda xs: xs[0])


def transposed(theirs: str, ours: str, axes: Sequence[int]) -> Link:
    """Rename and transpose an array: ours = theirs.transpose(axes)."""
    inverse = np.argsort(axes)
    return Link(theirs, (ours,), lambda x: [x.transpose(axes)], lambda xs: xs[0].transpose(inverse))


def conv(theirs: str, ours: str) -> Link:
    """Link a PyTorch convolution weight (out, in, h, w) to a kernel (h, w, in, out)."""
    return transposed(theirs, ours, (2, 3, 1, 0))


def dense(theirs: str, ours: str) -> list[Link]:
    """Link a PyTorch linear layer, weight (out, in), to a dense layer, kernel (in, out)."""
    return [transposed(f"{theirs}.weight", f"{ours}/kernel", (1, 0)), same(f"{theirs}.bias", f"{ours}/bias")]


def norm(theirs: str, ours: str) -> list[Link]:
    """Link a PyTorch normalization layer with scale and bias."""
    return [same(f"{theirs}.weight", f"{ours}/scale"), same(f"{theirs}.bias", f"{ours}/bias")]


def split_dense(theirs: str, ours: Sequence[str]) -> list[Link]:
    """Link a PyTorch linear layer to several dense layers, concatenated along its outputs."""
    kernels, biases = tuple(f"{name}/kernel" for name in ours), tuple(f"{name}/bias" for name in ours)
    return [
        Link(
            f"{theirs}.weight",
            kernels,
            lambda x: [part.transpose(1, 0) for part in np.split(x, len(ours))],
            lambda xs: np.concatenate([x.transpose(1, 0) for x in xs]),
        ),
        Link(f"{theirs}.bias", biases, lambda x: np.split(x, len(ours)), np.concatenate),
    ]


def to_heads(theirs: str, ours: Sequence[str], num_heads: int, bias: bool = True) -> list[Link]:
    """Link a PyTorch linear layer to projections to heads: kernels (d, k, h) and biases (k, h)."""

    def read_kernel(x: np.ndarray) -> list[np.ndarray]:
        return [part.transpose(1, 0).reshape(x.shape[1], num_heads, -1) for part in np.split(x, len(ours))]

    def write_kernel(xs: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([x.reshape(x.shape[0], -1).transpose(1, 0) for x in xs])

    def read_bias(x: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(num_heads, -1) for part in np.split(x, len(ours))]

    def write_bias(xs: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([x.reshape(-1) for x in xs])

    links = [Link(f"{theirs}.weight", tuple(f"{name}/kernel" for name in ours), read_kernel, write_kernel)]
    if bias:
        links.append(Link(f"{theirs}.bias", tuple(f"{name}/bias" for name in ours), read_bias, write_bias))
    return links


def from_heads(theirs: str, ours: str, num_heads: int) -> list[Link]:
    """Link a PyTorch linear layer to the projection from heads, kernel (k, h, d)."""
    return [
        Link(
            f"{theirs}.weight",
            (f"{ours}/kernel",),
            lambda x: [x.transpose(1, 0).reshape(num_heads, -1, x.shape[0])],
            lambda xs: xs[0].reshape(-1, xs[0].shape[2]).transpose(1, 0),
        ),
        same(f"{theirs}.bias", f"{ours}/bias"),
    ]


def shape_of(arrays: FlatParams, name: str, rank: int, origin: str) -> tuple[int, ...]:
    """Return the shape of an array; raise UserError if it is missing, empty or of another rank."""
    if name not in arrays:
        raise UserError(f"{origin} has no array {name}; expected one with {rank} axes. Is it a ViT, hybrid or Mixer?")
    found = arrays[name].shape
    if len(found) != rank or 0 in found:
        raise UserError(f"{origin} has {name} of shape {found}; expected {rank} non-empty axes.")
    return found


def to_ours(links: Sequence[Link], arrays: Mapping[str, np.ndarray], origin: str) -> FlatParams:
    """Convert a file's arrays to parameters; raise UserError listing missing and unexpected arrays."""
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
        except (ValueError, IndexError):
            raise UserError(
                f"{origin} has {link.theirs} of shape {arrays[link.theirs].shape}, which does not fit {', '.join(link.ours)}."
            ) from None
    return params


def to_theirs(links: Sequence[Link], params: Mapping[str, np.ndarray]) -> FlatParams:
    """Convert parameters to the arrays of a file; the links must cover every parameter."""
    unknown = set(params) - {name for link in links for name in link.ours}
    assert not unknown, unknown
    return {
        link.theirs: np.ascontiguousarray(link.write([np.asarray(params[name]) for name in link.ours]))
        for link in links
    }
