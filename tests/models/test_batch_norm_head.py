"""The head of MAE's linear probe beside torch's batch norm and linear layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import torch
from vit_jax.config.factory import build
from vit_jax.models import heads
from vit_jax.models.vit import ViT
from vit_jax.tasks.classify import Classify
from vit_jax.types import UserError

RNG = np.random.default_rng(0)


def test_it_is_torchs_batch_norm_and_linear_layer(agrees):
    head = heads.fitted(heads.batch_norm_linear(), 3, "float32", "float32")
    batches = RNG.normal(2.0, 3.0, size=(4, 64, 5))
    variables = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 5)))
    params, state = variables["params"], variables["batch_stats"]
    assert {name: leaf.shape for name, leaf in params.items()} == {"kernel": (5, 3), "bias": (3,)}
    norm, linear = torch.nn.BatchNorm1d(5, affine=False, eps=1e-6).double(), torch.nn.Linear(5, 3).double()
    linear.weight.data, linear.bias.data = (
        torch.tensor(np.asarray(params["kernel"], np.float64).T),
        torch.zeros(3).double(),
    )
    train = jax.jit(lambda variables, x: head.apply(variables, x, mutable=["batch_stats"]))
    for batch in batches:
        found, updated = train({"params": params, "batch_stats": state}, jnp.asarray(batch))
        state = updated["batch_stats"]
        agrees(
            "head batch_norm_linear: training", "torch float64", found, linear(norm(torch.tensor(batch))).detach(), 1e-5
        )
    norm.eval()
    found = jax.jit(head.apply)({"params": params, "batch_stats": state}, jnp.asarray(batches[0]))
    expected = linear(norm(torch.tensor(batches[0]))).detach()
    agrees("head batch_norm_linear: in use", "torch float64", found, expected, 0.02)  # torch's variance is unbiased


def test_a_classifier_keeps_its_statistics_as_state():
    model = ViT(4, 8, 1, 8, 2, patch_size=4, head=build({"type": "batch_norm_linear"}, "model.head"))
    spec = {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")}
    task = Classify(model, class_names=("a", "b", "c", "d"), spec=spec)
    params = jax.jit(lambda: task.init(jax.random.key(0), spec))()
    state = jax.jit(task.init_state)(params)
    images = jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 3), np.uint8))
    batch = task.prepare({"image": images, "label": jnp.arange(6) % 4}, jax.random.key(0), {})
    _, aux = jax.jit(task.loss)(params, state, batch, jax.random.key(0))
    after = task.update(params, state, aux.stats, jnp.int32(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert float(jnp.abs(after["batch_stats"]["head"]["norm"]["mean"]).max()) > 0
    assert not task.decomposable
    weights = task.evaluated(params, after)[""]
    one, all_of_them = (jax.jit(task.predict)(weights, {"image": x})["logits"][0] for x in (images[:1], images))
    np.testing.assert_allclose(one, all_of_them, atol=1e-5)  # in use no image depends on the others


@pytest.mark.parametrize("wrong", [{"std": 0.0}, {"momentum": 1.0}, {"eps": 0.0}])
def test_a_wrong_argument_is_told(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
        heads.batch_norm_linear(**wrong)
