import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import torch
from vit_jax.models.vit import ViT
from vit_jax.tasks.dino import Dino
from vit_jax.types import UserError

RNG = np.random.default_rng(0)
SPEC = {"views": jax.ShapeDtypeStruct((2, 8, 8, 3), "uint8"), "crops": jax.ShapeDtypeStruct((3, 4, 4, 3), "uint8")}
BATCH = {key: jnp.asarray(RNG.integers(0, 256, (4, *x.shape), np.uint8)) for key, x in SPEC.items()}


def task(**options):
    model = ViT(num_classes=0, width=8, depth=1, mlp_dim=8, num_heads=2, patch_size=4, posemb="sincos2d")
    return Dino(model, steps=10, outputs=6, hidden=8, bottleneck=4, **options)


def test_the_loss_is_the_cross_entropy_of_pairs_of_different_views(agrees):
    """Algorithm 1 of arXiv:2104.14294 with multi-crop, in torch float64 from the same scores."""
    params = jax.jit(lambda: task().init(jax.random.key(0), SPEC))()
    teacher = jax.tree.map(lambda x: x + 0.1, params)
    center = jnp.asarray(RNG.normal(size=(1, 6)), jnp.float32)
    state = {**task().init_state(params), "teacher": teacher, "center": center}
    loss, (_, stats) = task().loss(params, state, BATCH, jax.random.key(1))
    scores = [
        np.asarray(task().score(p, task().encode(p, BATCH[k]).features))
        for p, k in ((teacher, "views"), (params, "views"), (params, "crops"))
    ]
    t, *s = (torch.tensor(x.astype(np.float64)) for x in scores)
    student = torch.cat(s, dim=1)
    targets = torch.softmax((t - torch.tensor(np.asarray(center, np.float64))) / 0.04, dim=-1)
    terms = [
        -(targets[:, i] * torch.log_softmax(student[:, j] / 0.1, dim=-1)).sum(dim=-1).mean()
        for i in range(2)
        for j in range(5)
        if i != j
    ]
    agrees("DINO: loss", "torch float64", loss, (sum(terms) / len(terms)).item(), 1e-5)
    agrees("DINO: centre", "torch float64", stats["center"], t.mean(dim=(0, 1)).numpy()[None], 1e-6)


def test_teacher_centre_and_temperature_after_five_steps(agrees):
    params = jax.jit(lambda: task().init(jax.random.key(0), SPEC))()
    state = task(warmup=0.5).init_state(params)
    name = ("head", "dense_0", "bias")
    expected, center = np.zeros(8), np.zeros((1, 6))
    for step in range(5):
        new = jax.tree.map(lambda x, step=step: x + step + 1.0, params)
        mean = RNG.normal(size=(1, 6))
        state = task(warmup=0.5).update(new, state, {"center": jnp.asarray(mean, jnp.float32)}, jnp.int32(step))
        momentum = 1 - (1 - 0.996) * (np.cos(np.pi * step / 10) + 1) / 2
        expected = momentum * expected + (1 - momentum) * (step + 1.0)
        center = 0.9 * center + 0.1 * mean
    found = state["teacher"][name[0]][name[1]][name[2]]
    agrees("DINO: teacher after 5 steps", "numpy float64", found, expected, 1e-6)
    agrees("DINO: centre after 5 steps", "numpy float64", state["center"], center, 1e-6)
    assert float(state["temperature"]) == pytest.approx(0.07)
    assert float(state["last_layer_learns"]) == 1.0


def test_fewer_than_two_views_are_refused():
    with pytest.raises(UserError, match=r"compares two views.*views\(2"):
        task().init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")})
