"""Scaled dot-product attention (arXiv:1706.03762, equation 1) in forms for different hardware.

Each maps queries, keys and values [b, n, k, h] of k heads to [b, n, k, h]; softmax and its derivative are in float32. Only
`plain` has weights to inspect and to drop; the fused forms never write them to memory.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vit_jax.layers import ops
from vit_jax.layers.geometry import with_rank
from vit_jax.sharding import BATCH_AXES, for_every_platform, platform
from vit_jax.types import Mask

Form = Literal["auto", "plain", "pallas", "cudnn"]
Heads = Float[Array, "b n k h"]
Queries = Float[Array, "b q k h"]
Weights = Float[Array, "b k q n"]
Flat = Float[Array, "b n d"]

# With more tokens the weights of a head do not fit into a TPU's vector memory.
MOST_TOKENS = 1024


def choose(form: Form, tokens: int, whole: bool) -> Form:
    """Return the form to use, resolving "auto"; whole: the weights are neither dropped, masked nor inspected.

    On TPUs "auto" is the kernel, with which a ViT-B/16 step compiled for v5e moves 0.6 of the bytes. On CPUs no fused
    form was faster. On GPUs "cudnn" has not been measured yet. A program for every platform uses the plain form.
    """
    if for_every_platform():
        return "plain"
    if form != "auto":
        return form
    return "pallas" if whole and platform() == "tpu" and tokens <= MOST_TOKENS else "plain"


def weights_of(
    queries: Queries, keys: Heads, mask: Mask = None, bias: Float[Array, "... k q n"] | None = None
) -> Weights:
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


def weighted_values(weights: Weights, values: Heads) -> Queries:
    """Return the weighted means of the values."""
    return ops.matmul(weights, values.swapaxes(1, 2), values.dtype).swapaxes(1, 2)


def plain(queries: Queries, keys: Heads, values: Heads) -> Queries:
    """Compute two products with the softmax between them."""
    return weighted_values(weights_of(queries, keys), values)


def cudnn(queries: Heads, keys: Heads, values: Heads) -> Heads:
    """cuDNN's FlashAttention (arXiv:2307.08691), for NVIDIA GPUs from Ampere on, in bfloat16 or float16."""
    return jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn")


def pallas(queries: Heads, keys: Heads, values: Heads) -> Heads:
    """Run a kernel for TPUs, which computes the weights of one head of one image at a time, in vector memory.

    The backward pass recomputes them from queries and keys, like FlashAttention (arXiv:2205.14135); an image has few
    tokens, so nothing is tiled. On other platforms the kernel is interpreted, which is slow. Each device computes its
    images and heads.
    """
    b, n, k, h = queries.shape
    mesh = jax.sharding.get_abstract_mesh()
    images = tuple(axis for axis in BATCH_AXES if axis in mesh.shape) or None
    heads = "tensor" if "tensor" in mesh.shape else None
    attend = functools.partial(_attend, k // mesh.shape.get("tensor", 1))
    if mesh.shape:
        place = PartitionSpec(images, None, heads)
        attend = jax.shard_map(attend, in_specs=(place,) * 3, out_specs=place, check_vma=False)
    return attend(*(x.reshape(b, n, k * h) for x in (queries, keys, values))).reshape(b, n, k, h)


def _softmax(queries: Array, keys: Array, scale: float) -> Array:
    scores = _product(queries, keys, 1, 1) * scale
    exponents = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def _product(left: Array, right: Array, over: int, and_over: int) -> Array:
    """Return the product of two matrices, summed over these axes, in float32."""
    return jax.lax.dot_general(left, right, (((over,), (and_over,)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(q, k, v, out, *, heads: int):
    size = out.shape[2] // heads
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        weights = _softmax(q[0, :, at], k[0, :, at], size**-0.5).astype(v.dtype)
        out[0, :, at] = _product(weights, v[0, :, at], 1, 0).astype(out.dtype)


def _backward_kernel(q, k, v, gradient, to_q, to_k, to_v, *, heads: int):
    size = gradient.shape[2] // heads
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        queries, keys, given = q[0, :, at], k[0, :, at], gradient[0, :, at]
        weights = _softmax(queries, keys, size**-0.5)
        to_weights = _product(given, v[0, :, at], 1, 1)
        means = (weights * to_weights).sum(axis=1, keepdims=True)
        to_scores = (weights * (to_weights - means) * size**-0.5).astype(queries.dtype)
        to_q[0, :, at] = _product(to_scores, keys, 1, 0).astype(to_q.dtype)
        to_k[0, :, at] = _product(to_scores, queries, 0, 0).astype(to_k.dtype)
        to_v[0, :, at] = _product(weights.astype(v.dtype), given, 0, 0).astype(to_v.dtype)


def _call(kernel, outputs: int, *arrays: Flat) -> tuple[Flat, ...]:
    """Run a kernel on one image at a time."""
    b, n, d = arrays[0].shape
    image = pl.BlockSpec((1, n, d), lambda i: (i, 0, 0))
    made = pl.pallas_call(
        kernel,
        grid=(b,),
        in_specs=[image] * len(arrays),
        out_specs=[image] * outputs,
        out_shape=[jax.ShapeDtypeStruct((b, n, d), arrays[0].dtype)] * outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=64 * 2**20),
        interpret=platform() != "tpu",
    )(*arrays)
    return tuple(made)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(heads: int, queries: Flat, keys: Flat, values: Flat) -> Flat:
    return _call(functools.partial(_forward_kernel, heads=heads), 1, queries, keys, values)[0]


def _forward(heads: int, *arrays: Flat) -> tuple[Flat, tuple[Flat, ...]]:
    return _attend(heads, *arrays), arrays


def _backward(heads: int, arrays: tuple[Flat, ...], gradient: Flat) -> tuple[Flat, ...]:
    return _call(functools.partial(_backward_kernel, heads=heads), 3, *arrays, gradient)


_attend.defvjp(_forward, _backward)
FORMS = {"plain": plain, "pallas": pallas, "cudnn": cudnn}
