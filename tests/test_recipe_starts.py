"""How the models of recipes begin: what their codes draw, and that the recipe's optimiser moves all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import sampled
from tests.test_configs import ARGUMENTS
from tests.test_recipes import PATHS, RUNS, load, toy
from vit_jax import trees
from vit_jax.config.factory import build
from vit_jax.models import fill
from vit_jax.optim import make_optimizer
from vit_jax.optim.schedules import constant
from vit_jax.tasks.losses import LOSSES
from vit_jax.train.build import build as build_run
from vit_jax.types import UserError

TOY = {"width": 64, "depth": 1, "mlp_dim": 128, "num_heads": 4, "tokens_mlp_dim": 16, "channels_mlp_dim": 128}
SWIN = {"width": 16, "depths": (1, 1), "num_heads": (2, 2)}
RECIPES = [
    "augreg",
    *RUNS[1:],
    *PATHS,
    *(f"{name}:{argument}".format(data="/images").rstrip(":") for name, argument in ARGUMENTS.items()),
]
CLASSES = 50


def model_of(recipe, **fields):
    """The recipe's network, small, with a head of 1000 classes; a run that begins from another has a ViT."""
    given = fill({"type": "vit.ViT", "variant": "S/16"} | load(recipe).to_dict()["model"])
    toy_fields = SWIN if given["type"] == "swin.Swin" else TOY
    small = {key: value for key, value in toy_fields.items() if key in given}
    small |= {"rep_size": 64} if given.get("rep_size") else {}
    return build(given | small | fields | {"num_classes": CLASSES}, "model")


def optimizer_of(recipe, model):
    optim = {key: value for key, value in load(recipe).to_dict()["optim"].items() if key not in ("rule", "schedule")}
    lr = optim.pop("lr") or 0.01  # by_size fills it in
    rule = build(load(recipe).to_dict()["optim"]["rule"], "optim.rule")
    return make_optimizer(rule, constant(1), lr, **optim)[0]


def first(model, side):
    images = jnp.zeros((1, side, side, 3))
    return jax.jit(model.init)(jax.random.key(0), images)["params"]


@pytest.mark.parametrize("recipe", sampled(RECIPES, *RECIPES[::4]))
def test_what_begins_at_zero_is_not_scaled_by_its_norm(recipe):
    model = model_of(recipe)
    params = first(model, 32)
    zero = {name for name, leaf in trees.flatten(params).items() if not np.any(leaf)}
    assert zero
    tx, rng = optimizer_of(recipe, model), np.random.default_rng(0)
    noise = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in trees.flatten(params).items()}
    grads = trees.unflatten(params, noise)

    @jax.jit
    def step(size):
        """The first update where all that begins at zero has entries of this size."""
        moved = trees.map_named(lambda name, leaf: leaf + size * noise[name] if name in zero else leaf, params)
        return trees.flatten(tx.update(grads, tx.init(moved), moved)[0])

    small, large = step(1e-6), step(1e-5)
    for name in zero:
        np.testing.assert_allclose(jnp.linalg.norm(small[name]), jnp.linalg.norm(large[name]), rtol=0.01, err_msg=name)


def learned(recipe, model, steps=400):
    """The share of one made-up image for each class that is classified right after some steps of the recipe's optimiser."""
    images, labels = jax.random.normal(jax.random.key(1), (CLASSES, 8, 8, 3)), jnp.arange(CLASSES)
    tx, loss_of = optimizer_of(recipe, model), LOSSES[load(recipe).to_dict()["task"]["loss_name"]]

    def loss(params):
        logits = model.apply({"params": params}, images)
        return loss_of(logits, jax.nn.one_hot(labels, CLASSES)).mean(), (logits.argmax(axis=1) == labels).mean()

    @jax.jit
    def train(params, state):
        def step(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(loss, has_aux=True)(params)[0], state, params)
            return optax.apply_updates(params, updates), state

        return loss(jax.lax.fori_loop(0, steps, step, (params, state))[0])[1]

    params = first(model, 8)
    return train(params, tx.init(params))


@pytest.mark.parametrize(
    "recipe",
    [
        "deit3",
        "scaling_vit:variant=B/16",
        "cifar10:folder:/images",
        *(pytest.param(f"deit3:data=i21k{more}", marks=pytest.mark.torture) for more in ("", ",init=mu/16")),
    ],
)
def test_the_optimisers_of_recipes_learn_from_their_first_weights(recipe):
    assert learned(recipe, model_of(recipe, patch_size=8, stride=None)) > 0.9


def test_lamb_does_not_learn_from_a_head_of_zeros():
    assert learned("deit3", model_of("deit3", patch_size=8, head=None)) < 0.1


def test_a_run_whose_lamb_cannot_move_a_parameter_is_refused(tmp_path):
    config = toy("deit3")
    config.model.head = None
    with pytest.raises(UserError, match=r"head/kernel begins at zero and would stay near it.*'std': 0.02"):
        build_run(config.to_dict(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def spread(recipe):
    """The standard deviation of each parameter of the recipe's network at its first step."""
    return {name: float(np.std(leaf)) for name, leaf in trees.flatten(first(model_of(recipe, width=192), 32)).items()}


@pytest.mark.parametrize("recipe", sampled(["deit", "deit:teacher=mu/16", "deit3"], "deit:teacher=mu/16", "deit3"))
def test_deit_begins_as_its_repository(recipe):
    """trunc_normal(0.02) in every linear layer, token and position; torch's default in the convolution (models_v2.py)."""
    found = {name: std for name, std in spread(recipe).items() if std and "layer_scale" not in name}
    patches = found.pop("embed/kernel")
    assert patches == pytest.approx((3 * 16 * 16 * 3) ** -0.5, rel=0.03)
    assert {name for name, std in found.items() if std != pytest.approx(0.02, rel=0.2)} == set()
    assert {"cls", "posemb/table", "head/kernel"} <= set(found)


def test_a_mixer_begins_as_in_big_vision():
    """nn.Dense's own initial values: lecun_normal, and biases of zero (big_vision, models/mlp_mixer.py)."""
    model = model_of("mixer", width=192)
    params = trees.flatten(first(model, 32))
    for name, leaf in params.items():
        if name.endswith("kernel") and "head" not in name:
            fan_in = leaf.size / leaf.shape[-1]
            assert np.std(leaf) == pytest.approx(fan_in**-0.5, rel=max(0.05, 4 / (2 * leaf.size) ** 0.5)), name
        assert not (name.endswith("bias") and "head" not in name and np.any(leaf)), name


@pytest.mark.parametrize(
    "recipe",
    sampled(["augreg", "sam", "scaling_vit:variant=B/16", "distill:teacher=mu/16"], "augreg", "distill:teacher=mu/16"),
)
def test_learned_positions_begin_as_in_big_vision(recipe):
    assert spread(recipe)["posemb/table"] == pytest.approx(192**-0.5, rel=0.15)


def test_learned_positions_begin_as_in_the_original():
    assert spread("vit")["posemb/table"] == pytest.approx(0.02, rel=0.15)
