"""Print the sigmoid loss and its gradients over 8 virtual devices, and on one; run by a test in a process of its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.tasks.siglip import sigmoid_loss

rng = np.random.default_rng(0)
image, text = (rng.normal(size=(32, 8)).astype(np.float32) for _ in range(2))
ids = jnp.asarray(rng.integers(0, 20, (32, 1)), jnp.int32)
arguments = (jnp.asarray(image), jnp.asarray(text), ids, jnp.float32(2.0), jnp.float32(-3.0))


def run(*arguments):
    value, grads = jax.value_and_grad(lambda *a: sigmoid_loss(*a, 2), (0, 1, 3, 4))(*arguments)
    return [value, *grads]


def flat(arrays):
    return np.concatenate([np.asarray(x).reshape(-1) for x in arrays]).tolist()


found = {"one": flat(run(*arguments))}
for name, axes in {"data": {"data": -1}, "fsdp": {"data": 2, "fsdp": 4}}.items():
    mesh = sharding.make_mesh(**axes)
    placed = [
        jax.device_put(x, sharding.batch_sharding(mesh) if x.ndim else sharding.everywhere(mesh)) for x in arguments
    ]
    found[name] = flat(jax.jit(sharding.on_mesh(run, mesh))(*placed))
print(json.dumps(found))
