"""Scaled dot-product attention (arXiv:1706.03762, equation 1) in forms for different hardware.

Each maps queries, keys and values [b, n, k, h] of k heads to [b, n, k, h]; softmax and its derivative are in float32. `mask`
[b, n] is False for tokens that no token attends to, and `bias` is added to the scores. Only `plain` has weights to inspect and
to drop; the fused forms never write them to memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

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


def pallas(queries: Heads, keys: Heads, values: Heads, mask: Mask = None, bias: Bias | None = None) -> Heads:
    """Run a kernel for TPUs, which computes the weights of one head of one image at a time, in vector memory.

    The backward pass recomputes them from queries and keys, like FlashAttention (arXiv:2205.14135); an image has few
    tokens, so nothing is tiled. On other platforms the kernel is interpreted, which is slow. Each device computes its
    images and heads. All images have the same bias [k, n, n].
    """
    if bias is not None and bias.ndim > 3:
        raise UserError("model.attention='pallas' takes no relative biases of each image; take 'plain' or 'auto'.")
    b, n, k, h = queries.shape
    mesh = jax.sharding.get_abstract_mesh()
    images = tuple(axis for axis in BATCH_AXES if axis in mesh.shape) or None
    heads = "tensor" if "tensor" in mesh.shape else None
    attend = functools.partial(_attend, k // mesh.shape.get("tensor", 1))
    added = (
        None if mask is None else mask[:, None].astype(jnp.float32),
        None if bias is None else bias.astype(jnp.float32),
    )
    if mesh.shape:
        place = PartitionSpec(images, None, heads)
        specs = (*(place,) * 3, PartitionSpec(images), PartitionSpec(heads))
        attend = jax.shard_map(attend, in_specs=specs, out_specs=place, check_vma=False)
    flat = (x.reshape(b, n, k * h) for x in (queries, keys, _unmasked(values, mask)))
    return attend(*flat, *added).reshape(b, n, k, h)


def _product(left: Array, right: Array, over: int, and_over: int) -> Array:
    """Return the product of two matrices, summed over these axes, in float32."""
    return jax.lax.dot_general(left, right, (((over,), (and_over,)), ((), ())), preferred_element_type=jnp.float32)


def _weights(queries: Array, keys: Array, mask: Any, bias: Any, head: int) -> Array:
    """Return the weights of a head, in float32; mask and bias are references."""
    scores = _product(queries, keys, 1, 1) * queries.shape[1] ** -0.5
    if bias is not None:
        scores = scores + bias[head]
    if mask is not None:
        scores = jnp.where(mask[0] > 0, scores, jnp.finfo(scores.dtype).min)
    exponents = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def _forward_kernel(heads: int, q, k, v, mask, bias, out):
    size = out.shape[2] // heads
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        weights = _weights(q[0, :, at], k[0, :, at], mask, bias, head).astype(v.dtype)
        out[0, :, at] = _product(weights, v[0, :, at], 1, 0).astype(out.dtype)


def _backward_kernel(heads: int, q, k, v, mask, bias, gradient, to_q, to_k, to_v, to_bias=None):
    size = gradient.shape[2] // heads
    if to_bias is not None:  # summed over the images of a part of the grid

        @pl.when(pl.program_id(1) == 0)
        def _():
            to_bias[...] = jnp.zeros_like(to_bias)

    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        queries, keys, given = q[0, :, at], k[0, :, at], gradient[0, :, at]
        weights = _weights(queries, keys, mask, bias, head)
        to_weights = _product(given, v[0, :, at], 1, 1)
        to_scores = weights * (to_weights - (weights * to_weights).sum(axis=1, keepdims=True))
        if to_bias is not None:
            to_bias[0, head] += to_scores
        to_scores = (to_scores * size**-0.5).astype(queries.dtype)
        to_q[0, :, at] = _product(to_scores, keys, 1, 0).astype(to_q.dtype)
        to_k[0, :, at] = _product(to_scores, queries, 0, 0).astype(to_k.dtype)
        to_v[0, :, at] = _product(weights.astype(v.dtype), given, 0, 0).astype(to_v.dtype)


def _call(
    kernel: Callable[..., None], arrays: Sequence[Array | None], outputs: int, with_bias: bool
) -> tuple[Array, ...]:
    """Run a kernel on one image at a time; the arrays are queries, keys, values, mask, bias and more like the queries.

    Returns arrays like the queries and, with_bias, one like the bias. Half of the images are one part of the grid, which
    chips with two cores compute on one of them.
    """
    queries, bias = arrays[0], arrays[4]
    assert queries is not None
    b, n, d = queries.shape
    parts = 2 - b % 2

    def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda part, i: (0,) * len(shape))

    def one_of(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((1, *shape[1:]), lambda part, i: (part * (b // parts) + i, *(0,) * (len(shape) - 1)))

    given = [x for x in arrays if x is not None]
    out_shape = [jax.ShapeDtypeStruct((b, n, d), queries.dtype)] * outputs
    out_specs = [one_of((b, n, d))] * outputs
    if with_bias and bias is not None:
        out_shape.append(jax.ShapeDtypeStruct((parts, *bias.shape), bias.dtype))
        out_specs.append(pl.BlockSpec((1, *bias.shape), lambda part, i: (part, 0, 0, 0)))

    def run(*refs: Any) -> None:
        references = iter(refs)
        kernel(*(None if x is None else next(references) for x in arrays), *references)

    made = pl.pallas_call(
        run,
        grid=(parts, b // parts),
        in_specs=[whole(x.shape) if x is bias else one_of(x.shape) for x in given],
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=64 * 2**20
        ),
        interpret=platform() != "tpu",
    )(*given)
    return tuple(made)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(heads: int, *arrays: Array | None) -> Flat:
    return _call(functools.partial(_forward_kernel, heads), arrays, 1, with_bias=False)[0]


def _forward(heads: int, *arrays: Array | None) -> tuple[Flat, tuple[Array | None, ...]]:
    return _attend(heads, *arrays), arrays


def _backward(heads: int, arrays: tuple[Array | None, ...], gradient: Flat) -> tuple[Array | None, ...]:
    to_q, to_k, to_v, *to_bias = _call(
        functools.partial(_backward_kernel, heads), (*arrays, gradient), 3, with_bias=True
    )
    return to_q, to_k, to_v, None, to_bias[0].sum(axis=0) if to_bias else None


_attend.defvjp(_forward, _backward)
FORMS = {"plain": plain, "pallas": pallas, "cudnn": cudnn}
