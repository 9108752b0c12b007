"""Images, parameters and runs of small models."""

import jax
import jax.numpy as jnp
import numpy as np


def images(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def init(model, x):
    """Parameters with no leaf at its default, so that nothing is hidden by zeros."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def apply(model, params, x, **arguments):
    return jax.jit(lambda params, x: model.apply({"params": params}, x, **arguments))(params, x)


def sown(model, params, x) -> dict:
    """What the model sows into the collection "intermediates"."""
    return apply(model, params, x, mutable=["intermediates"])[1]["intermediates"]


def count(model, size=224) -> int:
    """Count the parameters for square images, extrapolated from models of 1 and 2 blocks, since all blocks are alike."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    one, two = (
        sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(model.clone(depth=depth).init, jax.random.key(0), images))
        )
        for depth in (1, 2)
    )
    return one + (model.depth - 1) * (two - one)
