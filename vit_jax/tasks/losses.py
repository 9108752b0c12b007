"""Losses of each example in float32: for soft targets, for a teacher's logits, and for numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.types import Logits

Targets = Float[Array, "b classes"]


def class_targets(
    labels: Int[Array, "b"] | Float[Array, "b classes"], num_classes: int, smoothing: float = 0.0
) -> Float[Array, "b num_classes"]:
    """Return soft targets for class indices, or for several labels per example (0 or 1 for each class).

    With label smoothing a target t becomes (1 - smoothing) t + smoothing / classes (arXiv:1512.00567, section 7); with
    independent classes, + smoothing / 2.
    """
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes
    return labels.astype(jnp.float32) * (1.0 - smoothing) + smoothing / 2.0


def softmax_xent(logits: Logits, targets: Targets) -> Float[Array, "b"]:
    """Return the cross-entropy of the softmax of the logits with the targets."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=1)


def sigmoid_xent(logits: Logits, targets: Targets) -> Float[Array, "b"]:
    """Return the binary cross-entropy of each class, summed over the classes (arXiv:2006.07159, section 4)."""
    logits = logits.astype(jnp.float32)
    return -jnp.sum(targets * jax.nn.log_sigmoid(logits) + (1.0 - targets) * jax.nn.log_sigmoid(-logits), axis=1)


def bce(logits: Logits, targets: Targets) -> Float[Array, "b"]:
    """Return the binary cross-entropy of each class, averaged over the classes (arXiv:2110.00476, section 2.1)."""
    return sigmoid_xent(logits, targets) / logits.shape[1]


def kl_divergence(logits: Logits, teacher: Logits, temperature: float = 1.0) -> Float[Array, "b"]:
    """Return KL(teacher || student) of both softmaxes at a temperature, times its square (arXiv:1503.02531, section 2)."""
    student, teacher = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, teacher))
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1)


def squared_error(values: Logits, targets: Targets) -> Float[Array, "b"]:
    """Return the squared error, averaged over the numbers of an example."""
    return jnp.mean(jnp.square(values.astype(jnp.float32) - targets), axis=1)


def absolute_error(values: Logits, targets: Targets) -> Float[Array, "b"]:
    """Return the absolute error, averaged over the numbers of an example."""
    return jnp.mean(jnp.abs(values.astype(jnp.float32) - targets), axis=1)


def huber(values: Logits, targets: Targets) -> Float[Array, "b"]:
    """Return half the squared error below 1, and the absolute error minus a half above (Huber 1964), averaged likewise."""
    error = jnp.abs(values.astype(jnp.float32) - targets)
    return jnp.mean(jnp.where(error < 1.0, 0.5 * jnp.square(error), error - 0.5), axis=1)


LOSSES = {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent, "bce": bce}
ERRORS = {"squared_error": squared_error, "absolute_error": absolute_error, "huber": huber}
