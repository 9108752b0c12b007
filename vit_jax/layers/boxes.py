"""Boxes as arrays: conversion between two formats, and the overlap of boxes."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# (left, top, right, bottom), or (x, y, width, height) with the centre (x, y).
Boxes = Float[Array, "... 4"]


def from_corners(boxes: Boxes) -> Boxes:
    """Return (x, y, width, height) of (left, top, right, bottom)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def to_corners(boxes: Boxes) -> Boxes:
    """Return (left, top, right, bottom) of (x, y, width, height)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def _area(sides: Float[Array, "... 2"]) -> Float[Array, "..."]:
    return sides[..., 0] * sides[..., 1]


def generalized_iou(a: Boxes, b: Boxes) -> Float[Array, "..."]:
    """Return the generalized intersection over union of boxes with corners, -1 to 1 (arXiv:1902.09630, algorithm 1).

    Leading dimensions of `a` and `b` are broadcast; dimensions of length 1 must be explicit. Empty boxes overlap
    nothing.
    """
    area_a, area_b = (_area(x[..., 2:] - x[..., :2]) for x in (a, b))
    inner = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    outer = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    both, hull = _area(jnp.maximum(inner, 0.0)), _area(outer)
    union = area_a + area_b - both
    safe_union, safe_hull = (jnp.where(x > 0, x, 1.0) for x in (union, hull))
    return jnp.where(union > 0, both / safe_union, 0.0) - jnp.where(hull > 0, (hull - union) / safe_hull, 0.0)
