"""Links for the layers of PyTorch libraries."""

from collections.abc import Sequence

import numpy as np

from vit_jax.pretrained.links import Flat, Link, linear, same
from vit_jax.types import UserError


def shape_of(arrays: Flat, name: str, rank: int, origin: str) -> tuple[int, ...]:
    """The shape of an array; raises UserError where it is not there, or of another number of axes."""
    if name not in arrays:
        raise UserError(f"{origin} lacks {name}; expected an array of {rank} axes.")
    found = arrays[name].shape
    if len(found) != rank or 0 in found:
        raise UserError(f"{origin} has {name} of shape {found}; expected {rank} axes of at least 1.")
    return found


def dense(theirs: str, ours: str) -> list[Link]:
    """A linear layer."""
    return [linear(f"{theirs}.weight", f"{ours}/kernel"), same(f"{theirs}.bias", f"{ours}/bias")]


def norm(theirs: str, ours: str) -> list[Link]:
    """A normalisation with scale and bias."""
    return [same(f"{theirs}.weight", f"{ours}/scale"), same(f"{theirs}.bias", f"{ours}/bias")]


def split_dense(theirs: str, ours: Sequence[str]) -> list[Link]:
    """One linear layer of theirs that holds several of ours, one after the other along its outputs."""
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
    """One linear layer of theirs and our projections to heads that it holds: kernels (d, k, h), biases (k, h)."""

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
    """The projection from heads: our kernel (k, h, d)."""
    return [
        Link(
            f"{theirs}.weight",
            (f"{ours}/kernel",),
            lambda x: [x.transpose(1, 0).reshape(num_heads, -1, x.shape[0])],
            lambda xs: xs[0].reshape(-1, xs[0].shape[2]).transpose(1, 0),
        ),
        same(f"{theirs}.bias", f"{ours}/bias"),
    ]
