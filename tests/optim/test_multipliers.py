"""Factors of learning rate and weight decay by regexes of the parameters' names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.config.factory import ConfigError, call
from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.types import UserError

NAMES = ("embed/kernel", "encoder/block_0/attn/kernel", "encoder/block_0/mlp/kernel", "head/kernel", "head/bias")
PARAMS = trees.nest({name: jnp.full(2, 5.0) for name in NAMES})
LAYERS = dict(zip(NAMES, (0, 1, 1, 2, 2), strict=True))
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def optimiser(multipliers, rule=None, weight_decay=0.1, **optim):
    rule = rule or rules.sgd(momentum=0.0)
    return make_optimizer(
        rule,
        schedules.constant(1),
        lr=1.0,
        weight_decay=weight_decay,
        multipliers=multipliers,
        layers=lambda: LAYERS,
        **optim,
    )[0]


def changes(*args, **optim):
    tx = optimiser(*args, **optim)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    return {name: -float(leaf[0]) for name, leaf in trees.flatten(updates).items()}


def test_the_first_regex_counts_and_rate_and_decay_have_factors_of_their_own():
    multipliers = [
        ("attn", {"lr": 0.5, "weight_decay": 0.0}),
        ("^encoder", {"lr": 3.0}),
        ("^head", {"lr": 0.0, "weight_decay": 10.0}),
    ]
    # factor x gradient 1 + factor x decay 0.1 x parameter 5
    expected = (1 + 0.5, 0.5 + 0, 3 + 0.5, 0 + 5, 0 + 0)
    assert changes(multipliers) == pytest.approx(dict(zip(NAMES, expected, strict=True)))


def test_layer_decay_multiplies_both():
    plain, layered = changes([("mlp", {"lr": 3.0})]), changes([("mlp", {"lr": 3.0})], layer_decay=0.5)
    factors = dict(zip(NAMES, (0.25, 0.5, 0.5, 1, 1), strict=True))
    assert layered == pytest.approx({name: factors[name] * plain[name] for name in NAMES})


def test_the_step_of_lamb_is_multiplied_after_it_was_scaled():
    plain, doubled = (changes([("^head", {"lr": factor})], rules.lamb()) for factor in (1.0, 2.0))
    np.testing.assert_allclose(plain["head/kernel"], 5.0)  # as large as the parameter
    np.testing.assert_allclose(plain["head/bias"], 1.0, rtol=1e-5)  # Adam's, as it is not decayed
    assert (doubled["head/kernel"], doubled["head/bias"]) == (2 * plain["head/kernel"], 2 * plain["head/bias"])


def test_no_multipliers_change_nothing():
    assert changes([]) == changes(None) == changes([(".", {})]) == changes([(".", {"lr": 1.0, "weight_decay": 1.0})])


@pytest.mark.parametrize(
    ("multipliers", "says"),
    [
        ([("heads", {"lr": 2.0})], r"'heads' finds no parameter; names look like 'embed/kernel'"),
        ([("head", {"lr": 2.0}), ("head/bias", {"lr": 3.0})], "'head/bias' finds no parameter that no regex before it"),
        ([("bias$", {"weight_decay": 2.0})], "optim.decay='kernel\\$' decays none of these"),
    ],
)
def test_a_regex_without_effect_is_told_with_the_first_state(multipliers, says):
    with pytest.raises(UserError, match=says):
        optimiser(multipliers).init(PARAMS)


@pytest.mark.parametrize(
    ("multipliers", "says"),
    [
        ([("head(", {"lr": 2.0})], r"'head\(' is not a regular expression"),
        ([("head", {"lr": -1.0})], "lr=-1.0 for 'head'"),
        ([("head", {"decay": 1.0})], "decay=1.0 for 'head'; expected lr and weight_decay"),
    ],
)
def test_a_malformed_multiplier_is_told_at_once(multipliers, says):
    with pytest.raises(UserError, match=says):
        optimiser(multipliers)


def test_a_config_says_them_as_lists():
    optim = {"rule": rules.adam(), "schedule": schedules.constant(1), "lr": 1.0}
    tx, _ = call("optim", make_optimizer, optim | {"multipliers": [["head", {"lr": 2}]]})
    assert tx.init(PARAMS)
    with pytest.raises(ConfigError, match=r"optim.multipliers is \[\['head', 2.0\]\]; expected list"):
        call("optim", make_optimizer, optim | {"multipliers": [["head", 2.0]]})
