"""The states of the update rules, as training keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import sharding, trees
from vit_jax.checkpoint import saver
from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.types import UserError

PARAMS = trees.nest(
    {
        "encoder/block_0/mlp/up/kernel": jnp.ones((32, 40)),
        "encoder/norm/scale": jnp.ones(32),
        "head/kernel": jnp.zeros((32, 3)),
    }
)
RULES = {
    "adam": rules.adam(mu_dtype="bfloat16"),
    "sgd": rules.sgd(),
    "adafactor": rules.adafactor(),
    "lion": rules.lion(mu_dtype="bfloat16"),
    "lamb": rules.lamb(),
    "muon": rules.muon(),
}


def optimiser(rule):
    return make_optimizer(
        RULES[rule],
        schedules.wsd(10),
        lr=0.1,
        weight_decay=0.1,
        multipliers=[("^head", {"lr": 2.0})],
        clip_norm=1.0,
        layer_decay=0.8,
        layers=lambda: {"encoder/block_0/mlp/up/kernel": 1, "encoder/norm/scale": 2, "head/kernel": 2},
    )[0]


@pytest.mark.parametrize("rule", RULES)
def test_the_state_is_that_of_eval_shape_after_a_donated_step(rule):
    tx = optimiser(rule)

    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return optax.apply_updates(params, updates), state

    expected = jax.eval_shape(tx.init, PARAMS)
    params, state = jax.jit(step, donate_argnums=(0, 1))(jax.tree.map(jnp.copy, PARAMS), jax.jit(tx.init)(PARAMS))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(params))


def test_a_checkpoint_gives_every_state_back_bit_for_bit(tmp_path):
    states = {rule: jax.eval_shape(optimiser(rule).init, PARAMS) for rule in RULES}
    flat = {name: jnp.full(leaf.shape, 1.7, leaf.dtype) for name, leaf in trees.flatten(states).items()}
    keeper = saver.Saver()
    keeper.open(tmp_path)
    keeper.save(1, flat, {})
    keeper.close()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for name, leaf in flat.items()}
    again = saver.restore(tmp_path, 1, like)
    assert {name: (leaf.dtype, leaf.tobytes()) for name, leaf in jax.device_get(again).items()} == {
        name: (leaf.dtype, leaf.tobytes()) for name, leaf in jax.device_get(flat).items()
    }
    assert {str(leaf.dtype) for leaf in flat.values()} == {"float32", "bfloat16", "int32"}


def test_a_checkpoint_of_lamb_and_of_adam_name_their_moments_alike():
    names = [set(trees.flatten(jax.eval_shape(optimiser(rule).init, PARAMS))) for rule in ("lamb", "adam")]
    assert {name for name in names[0] if "/mu/" in name} == {name for name in names[1] if "/mu/" in name}


def test_adafactor_keeps_rows_and_columns_of_what_is_large_enough():
    state = trees.flatten(jax.eval_shape(rules.adafactor().init, PARAMS))
    kept = {name.partition("/")[2]: leaf.shape for name, leaf in state.items() if leaf.shape not in ((1,), ())}
    assert {name: shape for name, shape in kept.items() if not name.startswith("ema/")} == {
        "v_row/encoder/block_0/mlp/up/kernel": (32,),
        "v_col/encoder/block_0/mlp/up/kernel": (40,),
        "v/encoder/norm/scale": (32,),
        "v/head/kernel": (32, 3),
    }


def test_rows_and_columns_of_a_moment_are_copied_where_its_parameter_is_divided():
    mesh = sharding.make_mesh()
    tree = {"params": PARAMS, "opt_state": rules.adafactor().init(PARAMS)}
    places = trees.flatten(sharding.tree_sharding(tree, mesh, [("up/kernel$", [None, "data"])]))
    divided = {name for name, place in places.items() if place.spec != jax.sharding.PartitionSpec()}
    assert divided == {"params/encoder/block_0/mlp/up/kernel", "opt_state/1/ema/encoder/block_0/mlp/up/kernel"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: rules.adafactor(beta2_cap=1.0), r"beta2_cap=1.0; expected a number in \[0, 1\)"),
        (lambda: rules.adafactor(min_dim_size_to_factor=0), "min_dim_size_to_factor=0 must be at least 1"),
        (lambda: rules.lamb(eps=0.0), "eps=0.0 must be positive"),
        (lambda: rules.lion(b2=-0.1), "b2=-0.1"),
    ],
)
def test_a_wrong_argument_is_told(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_lamb_without_weight_decay_is_refused_as_it_would_be_adam():
    tx, _ = make_optimizer(rules.lamb(), schedules.constant(1), lr=0.1)
    with pytest.raises(UserError, match=r"optim\.weight_decay=0 leaves none"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
