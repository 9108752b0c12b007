"""Ways to compute scaled dot-product attention (arXiv:1706.03762, equation 1): one function in several forms.

All take queries [b, q, k, h], keys and values [b, n, k, h] of k heads, and give [b, q, k, h] in the queries' dtype. The softmax
and its derivative are taken in float32 whatever the dtype.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "b n k h"]
Queries = Float[Array, "b q k h"]
Weights = Float[Array, "b k q n"]


def weights_of(queries: Queries, keys: Heads) -> Weights:
    """The softmax of scaled products, in the queries' dtype."""
    scale = jnp.asarray(queries.shape[-1] ** -0.5, queries.dtype)
    scores = jnp.einsum("bqkh,bnkh->bkqn", queries * scale, keys)
    return jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32))).astype(queries.dtype)


def mixed(weights: Weights, values: Heads) -> Queries:
    """The means of the values by these weights."""
    return jnp.einsum("bkqn,bnkh->bqkh", weights, values)


@jax.custom_vjp
def lean(queries: Queries, keys: Heads, values: Heads) -> Queries:
    """Attention that keeps no array of queries x keys for the backward pass: it computes the weights there again.

    The derivative is that of FlashAttention (arXiv:2205.14135, appendix B.2), without its tiles.
    """
    return mixed(weights_of(queries, keys), values)


def _forward(queries: Queries, keys: Heads, values: Heads):
    out = lean(queries, keys, values)
    return out, (queries, keys, values, out)


def _backward(kept, gradient: Queries):
    queries, keys, values, out = kept
    scale = jnp.asarray(queries.shape[-1] ** -0.5, queries.dtype)
    weights = weights_of(queries, keys)
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    # The softmax's derivative needs each row's mean of the gradient by the weights, which is that of the output.
    means = jnp.einsum("bqkh,bqkh->bkq", gradient.astype(wide), out.astype(wide))
    to_weights = jnp.einsum("bqkh,bnkh->bkqn", gradient, values)
    to_scores = (weights.astype(wide) * (to_weights.astype(wide) - means[..., None])).astype(queries.dtype)
    return (
        jnp.einsum("bkqn,bnkh->bqkh", to_scores, keys) * scale,
        jnp.einsum("bkqn,bqkh->bnkh", to_scores, queries) * scale,
        jnp.einsum("bkqn,bqkh->bnkh", weights, gradient),
    )


lean.defvjp(_forward, _backward)
