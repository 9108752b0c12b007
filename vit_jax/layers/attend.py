"""Scaled dot-product attention (arXiv:1706.03762, equation 1) in forms for different hardware.

Each maps queries, keys and values [b, n, k, h] of k heads to [b, n, k, h]; softmax and its derivative are in float32. `mask`
[b, n] is False for tokens that no token attends to, and `bias` is added to the scores. Only `plain` has weights to inspect and
to drop; the fused forms never write them to memory.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vit_jax.layers import ops
from vit_jax.layers.geometry import with_rank
from vit_jax.sharding import BATCH_AXES, for_every_platform, platform
from vit_jax.types import Mask, UserError

Form = Literal["auto", "plain", "pallas", "cudnn"]
Heads = Float[Array, "b n k h"]
Queries = Float[Array, "b q k h"]
Weights = Float[Array, "b k q n"]
Flat = Float[Array, "b n d"]
Bias = Float[Array, "... k q n"]

# With more tokens the weights of a head do not fit into a TPU's vector memory, with more biases these and their gradient.
MOST_TOKENS = 1024
MOST_BIASES = 2**21
LANES = 128  # of a TPU's registers
HEADS_AT_ONCE = 16  # of one or several images, in a step of the kernel


def choose(form: Form, tokens: int, whole: bool, bias: Bias | None = None) -> Form:
    """Return the form to use, resolving "auto"; whole: the weights are neither dropped nor inspected.

    On TPUs "auto" is the kernel, with which a ViT-B/16 step compiled for v5e moves 0.6 of the bytes, unless images have
    biases of their own or the biases are too many for it. On CPUs no fused form was faster. On GPUs "cudnn" has not been
    measured yet. A program for every platform uses the plain form.
    """
    if for_every_platform():
        return "plain"
    if form != "auto":
        return form
    fits = tokens <= MOST_TOKENS and (bias is None or (bias.ndim == 3 and bias.size <= MOST_BIASES))
    return "pallas" if whole and fits and platform() == "tpu" else "plain"


def weights_of(queries: Queries, keys: Heads, mask: Mask = None, bias: Bias | None = None) -> Weights:
    """Return the softmax of scaled products plus `bias`, in the queries' dtype.

    Keys have the weight 0 if `mask` [b, n] is False.
    """
    queries, keys = queries.swapaxes(1, 2), keys.swapaxes(1, 2)
    queries = queries / jnp.sqrt(queries.shape[-1]).astype(queries.dtype)
    scores = ops.matmul(queries, keys, jnp.promote_types(queries.dtype, jnp.float32), transposed=True)
    if bias is not None:
        scores = scores + with_rank(bias, scores.ndim).astype(scores.dtype)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    return ops.softmax(scores, queries.dtype)


def weighted_values(weights: Weights, values: Heads, mask: Mask = None) -> Queries:
    """Return the weighted means of the values; a NaN in a masked token stays there."""
    return ops.matmul(weights, _unmasked(values, mask).swapaxes(1, 2), values.dtype).swapaxes(1, 2)


def _unmasked(values: Heads, mask: Mask) -> Heads:
    return values if mask is None else jnp.where(mask[:, :, None, None], values, jnp.zeros((), values.dtype))


def plain(queries: Queries, keys: Heads, values: Heads, mask: Mask = None, bias: Bias | None = None) -> Queries:
    """Compute two products with the softmax between them."""
    return weighted_values(weights_of(queries, keys, mask, bias), values, mask)


def cudnn(queries: Heads, keys: Heads, values: Heads, mask: Mask = None, bias: Bias | None = None) -> Heads:
    """cuDNN's FlashAttention (arXiv:2307.08691), for NVIDIA GPUs from Ampere on, in bfloat16 or float16."""
    if mask is not None or bias is not None:
        what = "no mask of tokens" if bias is None else "no relative biases"
        raise UserError(f"model.attention='cudnn' takes {what}; take 'plain' or 'auto'.")
    return jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn")


def pallas(
    queries: Heads,
    keys: Heads,
    values: Heads,
    mask: Mask = None,
    bias: Bias | None = None,
    regions: Int[Array, "windows n"] | None = None,
) -> Heads:
    """Run a kernel for TPUs, which computes the weights of one head of one image at a time, in vector memory.

    The backward pass recomputes them from queries and keys, like FlashAttention (arXiv:2205.14135); an image has few
    tokens, so nothing is tiled. The weights are [keys, queries], since sums over rows are cheaper. On other platforms the
    kernel is interpreted, which is slow. Each device computes its images and heads. All images have the same bias [k, n,
    n]. regions: if the images are the windows of larger images, in order, the regions of the tokens of each window; a
    token attends to its region only.
    """
    if bias is not None and bias.ndim > 3:
        raise UserError("model.attention='pallas' takes no relative biases of each image; take 'plain' or 'auto'.")
    b, n, k, h = queries.shape
    mesh = jax.sharding.get_abstract_mesh()
    images = tuple(axis for axis in BATCH_AXES if axis in mesh.shape) or None
    heads = "tensor" if "tensor" in mesh.shape else None
    attend = functools.partial(_attend, k // mesh.shape.get("tensor", 1))
    groups = None
    if mask is not None:
        groups = jnp.stack([jnp.ones_like(mask), mask], axis=1).astype(jnp.float32)
    elif regions is not None:
        groups = jnp.stack([regions, regions], axis=1).astype(jnp.float32)
    # The kernel computes weights [keys, queries].
    bias = None if bias is None else bias.astype(jnp.float32).swapaxes(1, 2)
    if mesh.shape:
        place = PartitionSpec(images, None, heads)
        specs = (PartitionSpec(None if mask is None else images), PartitionSpec(heads), *(place,) * 3)
        attend = jax.shard_map(attend, in_specs=specs, out_specs=place, check_vma=False)
    flat = (x.reshape(b, n, k * h) for x in (queries, keys, _unmasked(values, mask)))
    return attend(groups, bias, *flat).reshape(b, n, k, h)


class _Head(NamedTuple):
    """A head of an image, and the `lanes` of all heads that share registers with it, which have `rows` when transposed."""

    image: int
    number: int
    lanes: slice
    rows: slice
    is_last: bool

    @property
    def at(self) -> tuple[int, slice, slice]:
        """The index of the lanes in a block of images [images, n, d]."""
        return self.image, slice(None), self.lanes

    @property
    def size(self) -> int:
        """The width of the head."""
        return self.rows.stop - self.rows.start

    def only(self, x: Array) -> Array:
        """Return x [n, lanes] with zeros for the other heads, so that a product over the lanes is this head's."""
        if x.shape[1] == self.size:
            return x
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where((lane >= self.rows.start) & (lane < self.rows.stop), x, jnp.zeros_like(x))


def _heads(images: int, heads: int, size: int) -> list[_Head]:
    """Return the heads of all images; those whose width divides a register share one."""
    together = LANES // size if LANES % size == 0 else 1
    found = []
    for image, number in itertools.product(range(images), range(heads)):
        first = number // together * together
        end = min(first + together, heads)
        rows = slice((number - first) * size, (number - first + 1) * size)
        found.append(_Head(image, number, slice(first * size, end * size), rows, number == end - 1))
    return found


def _ahead(function: Callable[[_Head], Any], heads: list[_Head], tokens: int) -> Iterator[tuple[_Head, Any]]:
    """Yield each head and the function's result for it, computed up to three heads ahead if the memory allows.

    So the products of some heads and the softmax of another can overlap: the compiler keeps to this order.
    """
    by, later = min(3, MOST_TOKENS**2 // tokens**2 - 1), iter(heads)
    coming = [function(head) for head in itertools.islice(later, by)]
    for head in heads:
        coming += [function(following) for following in itertools.islice(later, 1)]
        yield head, coming.pop(0)


def _product(left: Array, right: Array, over: int, and_over: int) -> Array:
    """Return the product of two matrices, summed over these axes, in float32."""
    return jax.lax.dot_general(left, right, (((over,), (and_over,)), ((), ())), preferred_element_type=jnp.float32)


def _exponents(head: _Head, groups: Any, bias: Any, q: Any, k: Any) -> tuple[Array, Array]:
    """Return the weights [keys, queries] of a head before their division by their sums over keys, and these [1, queries]."""
    scores = _product(k[head.at], head.only(q[head.at]), 1, 1) * head.size**-0.5
    if bias is not None:
        scores = scores + bias[head.number]
    if groups is not None:
        of_queries, of_keys = groups[head.image, :1], groups[head.image, 1:]
        scores = jnp.where(of_queries == of_keys.T, scores, jnp.finfo(scores.dtype).min)
    exponents = jnp.exp(scores - scores.max(axis=0, keepdims=True))
    return exponents, exponents.sum(axis=0, keepdims=True)


def _forward_kernel(heads: list[_Head], groups, bias, q, k, v, out):
    means = []
    for head, (exponents, total) in _ahead(lambda head: _exponents(head, groups, bias, q, k), heads, out.shape[1]):
        means.append(_product(v[head.at].T[head.rows], exponents.astype(v.dtype), 1, 0) * (1.0 / total))
        if head.is_last:
            out[head.at] = jnp.concatenate(means, axis=0).astype(out.dtype).T
            means = []


def _backward_kernel(heads: list[_Head], groups, bias, q, k, v, gradient, to_q, to_k, to_v, to_bias=None):
    if to_bias is not None:  # summed over the images of a part of the grid

        @pl.when(pl.program_id(1) == 0)
        def _():
            to_bias[...] = jnp.zeros_like(to_bias)

    def products(head: _Head) -> tuple[Array, Array, Array]:
        return *_exponents(head, groups, bias, q, k), _product(v[head.at], head.only(gradient[head.at]), 1, 1)

    gradients: list[tuple[Array, Array, Array]] = []
    for head, (exponents, total, to_weights) in _ahead(products, heads, q.shape[1]):
        at, rows, scale = head.at, head.rows, head.size**-0.5
        weights = exponents * (1.0 / total)
        to_scores = weights * (to_weights - (weights * to_weights).sum(axis=0, keepdims=True))
        if to_bias is not None:
            to_bias[0, head.number] += to_scores
        to_scores = to_scores.astype(q.dtype)
        gradients.append(
            (
                _product(k[at].T[rows], to_scores, 1, 0) * scale,
                _product(q[at].T[rows], to_scores, 1, 1) * scale,
                _product(gradient[at].T[rows], weights.astype(v.dtype), 1, 1),
            )
        )
        if head.is_last:
            for to, parts in zip((to_q, to_k, to_v), zip(*gradients, strict=True), strict=True):
                to[at] = jnp.concatenate(parts, axis=0).astype(to.dtype).T
            gradients = []


def _call(
    kernel: Callable[..., None],
    heads: int,
    groups: Array | None,
    bias: Array | None,
    arrays: Sequence[Flat],
    outputs: int,
    to_bias: bool = False,
) -> tuple[Array, ...]:
    """Run a kernel on a few images at a time; returns arrays like the given ones and, with to_bias, one like the bias.

    Half of the images are one part of the grid, which chips with two cores compute on one of them.
    """
    b, n, d = arrays[0].shape
    parts = 2 - b % 2
    windows = b if groups is None else len(groups)
    most = math.gcd(b // parts, windows)
    many = max(i for i in range(1, max(1, HEADS_AT_ONCE // heads) + 1) if most % i == 0)
    steps = b // parts // many

    def of_images(part: Any, step: Any) -> tuple[Any, ...]:
        return part * steps + step, 0, 0

    def of_windows(part: Any, step: Any) -> tuple[Any, ...]:
        return jax.lax.rem(part * steps + step, windows // many), 0, 0

    image, out_shape = (
        pl.BlockSpec((many, n, d), of_images),
        [jax.ShapeDtypeStruct((b, n, d), arrays[0].dtype)] * outputs,
    )
    in_specs, out_specs = [image] * len(arrays), [image] * outputs
    if bias is not None:
        in_specs.insert(0, pl.BlockSpec(bias.shape, lambda part, step: (0, 0, 0)))
    if groups is not None:
        in_specs.insert(0, pl.BlockSpec((many, 2, n), of_windows))
    if to_bias and bias is not None:
        out_shape.append(jax.ShapeDtypeStruct((parts, *bias.shape), bias.dtype))
        out_specs.append(pl.BlockSpec((1, *bias.shape), lambda part, step: (part, 0, 0, 0)))

    def run(*references: Any) -> None:
        rest = iter(references)
        kernel(_heads(many, heads, d // heads), *(None if x is None else next(rest) for x in (groups, bias)), *rest)

    made = pl.pallas_call(
        run,
        grid=(parts, steps),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=64 * 2**20
        ),
        interpret=platform() != "tpu",
    )(*(x for x in (groups, bias, *arrays) if x is not None))
    return tuple(made)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(heads: int, groups: Array | None, bias: Array | None, *arrays: Flat) -> Flat:
    return _call(_forward_kernel, heads, groups, bias, arrays, 1)[0]


def _forward(heads: int, groups: Array | None, bias: Array | None, *arrays: Flat) -> tuple[Flat, tuple[Any, ...]]:
    return _attend(heads, groups, bias, *arrays), (groups, bias, arrays)


def _backward(heads: int, kept: tuple[Any, ...], gradient: Flat) -> tuple[Array | None, ...]:
    groups, bias, arrays = kept
    found = _call(_backward_kernel, heads, groups, bias, (*arrays, gradient), 3, to_bias=True)
    return None, None if bias is None else found[3].sum(axis=0), *found[:3]


_attend.defvjp(_forward, _backward)
FORMS = {"plain": plain, "pallas": pallas, "cudnn": cudnn}
