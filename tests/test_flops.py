import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from vit_jax import flops
from vit_jax.models import fill
from vit_jax.models.vit import ViT

# Training GFLOPs for an image of 224 px: three times the forward pass.
TRAINING = {"Ti/16": 7.5, "S/16": 27.6, "B/16": 105.4, "L/16": 369.0, "H/14": 1004.0}


def model(variant, **fields):
    spec = fill({"type": "vit.ViT", "variant": variant, "num_classes": 1000} | fields)
    return ViT(**{key: value for key, value in spec.items() if key != "type"})


@functools.cache
def gradient(**fields):
    network = ViT(num_classes=10, width=64, depth=6, mlp_dim=256, num_heads=2, patch_size=16, **fields)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), "float32")
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    return flops.count(jax.grad(lambda params, x: network.apply({"params": params}, x).sum()), params, images)[0]


@pytest.mark.parametrize("variant", TRAINING)
def test_training_flops_equal_published_values(variant):
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), "float32")
    network = model(variant, scan=True)  # traces one block
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    forward, opaque = flops.count(network.apply, params, images)
    assert not opaque
    assert 3 * forward / 2 / 1e9 == pytest.approx(TRAINING[variant], rel=0.01)


def test_scan_counts_every_block():
    assert gradient(scan=True) == gradient()


def test_remat_counts_recomputation():
    plain, full = gradient(), gradient(remat="full", scan=True)
    assert 1.2 < full / plain < 1.34  # up to a third more


def test_a_patch_convolution_equals_its_product():
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((4, 4, 3, 5))
    dimensions = ("NHWC", "HWIO", "NHWC")
    counted = flops.count(
        lambda x, k: lax.conv_general_dilated(x, k, (4, 4), "VALID", dimension_numbers=dimensions), x, kernel
    )
    assert counted == (2 * (2 * 2 * 2) * (4 * 4 * 3) * 5, {})


def test_cond_counts_the_costliest_branch_and_nested_calls_count():
    a = jnp.zeros((4, 8)), jnp.zeros((8, 2))

    def function(flag, a, b):
        return lax.cond(flag, jax.jit(lambda a, b: a @ b), lambda a, b: jnp.zeros((4, 2)), a, b)

    assert flops.count(function, True, *a)[0] == 2 * 4 * 8 * 2
