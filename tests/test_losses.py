import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.losses import sigmoid_xent, softmax_xent

LOGITS = jax.random.normal(jax.random.key(0), (7, 5)) * 3
LABELS = jnp.array([0, 1, 2, 3, 4, 0, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_xent_equals_optax(smoothing):
    targets = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), smoothing)
    expected = optax.softmax_cross_entropy(LOGITS, targets)
    np.testing.assert_allclose(softmax_xent(LOGITS, LABELS, smoothing), expected, rtol=1e-6)


def test_sigmoid_xent_equals_optax():
    expected = optax.sigmoid_binary_cross_entropy(LOGITS, jax.nn.one_hot(LABELS, 5)).sum(axis=1)
    np.testing.assert_allclose(sigmoid_xent(LOGITS, LABELS), expected, rtol=1e-6)


def test_smoothed_sigmoid_xent_is_least_at_its_targets():
    targets = jnp.full((1, 5), 0.1).at[0, 2].set(0.9)
    logits = jnp.log(targets / (1 - targets))
    gradient = jax.grad(lambda x: sigmoid_xent(x, jnp.array([2]), 0.1).sum())(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_losses_are_float32_for_bfloat16_logits():
    assert softmax_xent(LOGITS.astype(jnp.bfloat16), LABELS).dtype == jnp.float32
