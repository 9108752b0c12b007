"""Losses of single examples, from logits and class indices, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.types import Labels, Logits


def softmax_xent(logits: Logits, labels: Labels, smoothing: float = 0.0) -> Float[Array, "b"]:
    """Cross-entropy with the softmax of the logits; label smoothing as in arXiv:1512.00567, section 7.

    The target is 1 - smoothing + smoothing / classes for the true class and smoothing / classes for the others.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    true = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -(1.0 - smoothing) * true - smoothing * log_p.mean(axis=1)


def sigmoid_xent(logits: Logits, labels: Labels, smoothing: float = 0.0) -> Float[Array, "b"]:
    """Binary cross-entropy of each class by itself, summed over the classes (arXiv:2006.07159, section 4).

    The targets are 1 - smoothing for the true class and smoothing for the others.
    """
    logits = logits.astype(jnp.float32)
    targets = jax.nn.one_hot(labels, logits.shape[1]) * (1.0 - 2.0 * smoothing) + smoothing
    return -jnp.sum(targets * jax.nn.log_sigmoid(logits) + (1.0 - targets) * jax.nn.log_sigmoid(-logits), axis=1)


LOSSES = {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent}
