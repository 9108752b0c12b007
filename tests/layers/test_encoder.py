import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import crossed, sampled
from tests.models.helpers import apply, images, init
from vit_jax import trees
from vit_jax.grads.gradient import Plain
from vit_jax.models.mixer import Mixer
from vit_jax.models.vit import ViT
from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.task import backbone_names
from vit_jax.train.state import initial_state
from vit_jax.train.step import make_step

WAYS = [
    {"scan": True},
    {"remat": "full"},
    {"remat": "dots"},
    {"scan": True, "remat": "full"},
    {"scan": True, "remat": "dots"},
]
X = images(4, 8, 8, 3)
SPEC = {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")}


def vit(**fields):
    return ViT(3, 8, 3, 16, 2, patch_size=4, qk_norm=True, layer_scale=0.1, **fields)


def mixer(**fields):
    return Mixer(3, 8, 3, 4, 16, patch_size=4, **fields)


@functools.cache
def plain(network):
    model = network()
    params = init(model, X)
    return params, results(model, params)


def results(model, params):
    """Gradients and everything that is sown."""

    def loss(params):
        logits, sown = model.apply({"params": params}, X, mutable=["intermediates", "attention"])
        return jnp.square(logits).sum(), sown

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize(
    ("network", "way"),
    [
        pytest.param(network, way, marks=() if network == vit or way in WAYS[:2] else pytest.mark.torture)
        for network in (vit, mixer)
        for way in WAYS
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_scan_and_remat_change_neither_gradients_nor_what_is_sown(network, way):
    params, expected = plain(network)
    found = results(network(**way), params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name, leaf in trees.flatten(expected).items():
        np.testing.assert_allclose(trees.flatten(found)[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_scan_and_remat_initial_params_the_same_parameters(way):
    jax.tree.map(
        np.testing.assert_array_equal, *(jax.jit(model.init)(jax.random.key(0), X) for model in (vit(), vit(**way)))
    )


OPTIMISERS = {
    "muon": {"rule": rules.muon(), "weight_decay": 0.1},
    "adam": {"rule": rules.adam(), "weight_decay": 0.1, "layer_decay": 0.5},
    "adafactor": {"rule": rules.adafactor(min_dim_size_to_factor=4), "weight_decay": 0.1, "clip_norm": 1.0},
}


def layers_of(task):
    params = jax.eval_shape(lambda: task.init(jax.random.key(0), SPEC))
    return backbone_names(task, params).layers(params)


@pytest.mark.parametrize("name", sampled(OPTIMISERS, "adafactor"))
def test_a_scanned_model_takes_the_same_steps(name):
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.integers(0, 256, (6, 8, 8, 3), np.uint8)), "label": jnp.arange(6) % 3}
    states = []
    for fields in ({}, {"scan": True}):
        task = Classify(vit(**fields))
        layers = functools.partial(layers_of, task)
        tx, lr = make_optimizer(schedule=schedules.constant(10), lr=0.01, layers=layers, **OPTIMISERS[name])
        step = jax.jit(functools.partial(make_step(task, tx, lr, Plain(), seed=0), {"task": {}, "data": {}}))
        state = jax.jit(functools.partial(initial_state, task, tx, SPEC, seed=0))()
        for _ in range(3):
            state, _ = step(state, batch)
        states.append(state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *states)


@pytest.mark.parametrize(
    ("fields", "way"),
    crossed(
        [{"drop_path": 0.9}, {"dropout": 0.5}, {"drop_path": 0.9, "drop_path_rule": "constant"}],
        [{"scan": True}, {"remat": "dots"}, {"remat": "inner"}, {"scan": True, "remat": "full"}],
    ),
    ids=str,
)
def test_scan_and_remat_keep_dropout_and_stochastic_depth(fields, way):
    model = vit(**fields, **way)
    params = init(model, X)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(seed, train):
        return model.apply({"params": params}, X, train=train, rngs={"dropout": jax.random.key(seed)})

    assert (logits(0, True) == logits(0, True)).all()
    assert (logits(0, True) != logits(1, True)).any()
    assert (logits(0, True) != logits(0, False)).any()
    np.testing.assert_allclose(logits(0, False), apply(vit(), params, X), atol=1e-5)


def test_each_block_of_a_scanned_model_drops_its_own_examples():
    # Of a rate that goes from 0 to 0.9 over two blocks the first drops nothing, the second nearly all.
    model = ViT(3, 8, 2, 16, 2, patch_size=4, drop_path=0.9, scan=True)
    x = images(64, 8, 8, 3)
    params = init(model, x[:1])
    _, sown = apply(model, params, x, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["intermediates"])
    outs = sown["intermediates"]["encoder"]
    first, second = outs["block_0"]["out"], outs["block_1"]["out"]
    assert jnp.isclose(first, sown["intermediates"]["tokens"]).all(axis=(1, 2)).mean() == 0
    unchanged = jnp.isclose(first, second).all(axis=(1, 2)).mean()
    assert 0.6 < unchanged < 0.95  # both branches dropped: 0.81 expected
