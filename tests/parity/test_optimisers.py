"""Twenty steps of every update rule next to the same steps of other libraries, which compute them in float64."""

import functools
import importlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from tests.peers import timm, torch
from vit_jax import trees
from vit_jax.models.vit import ViT
from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.optim.layer_decay import scale_by_layer
from vit_jax.pretrained import timm as published

timm_optim = importlib.import_module("timm.optim")  # after tests.peers
TIMM, TORCH = f"timm {timm.__version__}", f"torch {torch.__version__.partition('+')[0]}"
STEPS, LR, DECAY = 20, 0.1, 0.3
SHAPES = {
    "embed/kernel": (4, 4, 3, 32),
    "encoder/block_0/attn/query/kernel": (48, 2, 32),
    "encoder/block_0/mlp/up/kernel": (40, 64),
    "encoder/norm/scale": (48,),
}
RNG = np.random.default_rng(0)
START = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
# Some norms are below 1 and others far above it.
GRADS = [
    {name: RNG.normal(size=shape) * 10 ** RNG.uniform(-3, 0.5) for name, shape in SHAPES.items()} for _ in range(STEPS)
]


def after(rule, state_of=lambda state: state, weight_decay=DECAY, **optim):
    """The parameters after all steps of an optimizer of this library, in float32."""
    tx, _ = make_optimizer(rule, schedules.constant(STEPS), lr=LR, weight_decay=weight_decay, **optim)
    params, *grads = (trees.nest({k: jnp.asarray(v, jnp.float32) for k, v in tree.items()}) for tree in (START, *GRADS))
    state, update = state_of(tx.init(params)), jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return trees.flatten(params)


def after_theirs(make, names=tuple(SHAPES)):
    """The parameters after all steps of a torch optimizer in float64; make(groups) builds it for the decayed and other parameters."""
    params = {name: torch.nn.Parameter(torch.tensor(START[name])) for name in names}
    kernels = [name for name in names if name.endswith("kernel")]
    groups = [(kernels, DECAY), ([name for name in names if name not in kernels], 0.0)]
    tx = make([{"params": [params[name] for name in group], "weight_decay": wd} for group, wd in groups if group])
    for grads in GRADS:
        for name, param in params.items():
            param.grad = torch.tensor(grads[name])
        tx.step()
    return {name: param.detach().numpy() for name, param in params.items()}


CASES = {
    "AdamW": (
        functools.partial(after, rules.adam(b2=0.95)),
        functools.partial(torch.optim.AdamW, lr=LR, betas=(0.9, 0.95)),
        TORCH,
    ),
    "SGD with momentum": (
        functools.partial(after, rules.sgd(momentum_dtype="float32"), weight_decay=0.0),
        lambda groups: torch.optim.SGD([p for group in groups for p in group["params"]], lr=LR, momentum=0.9),
        TORCH,
    ),
    "SGD with Nesterov's momentum": (
        functools.partial(after, rules.sgd(momentum_dtype="float32", nesterov=True), weight_decay=0.0),
        lambda groups: torch.optim.SGD([p for group in groups for p in group["params"]], LR, 0.9, nesterov=True),
        TORCH,
    ),
    "Lion": (functools.partial(after, rules.lion()), functools.partial(timm_optim.Lion, lr=LR), TIMM),
    "LAMB": (functools.partial(after, rules.lamb(), clip_norm=1.0), functools.partial(timm_optim.Lamb, lr=LR), TIMM),
    "Adafactor": (
        functools.partial(after, rules.adafactor(momentum_dtype="float32")),
        functools.partial(
            timm_optim.AdafactorBigVision, lr=LR, min_dim_size_to_factor=32, momentum_dtype=torch.float64
        ),
        TIMM,
    ),
    "Adafactor without momentum, beta2 up to 0.8": (
        functools.partial(after, rules.adafactor(momentum=0.0, beta2_cap=0.8)),
        functools.partial(
            timm_optim.AdafactorBigVision, lr=LR, min_dim_size_to_factor=32, momentum=None, beta2_cap=0.8
        ),
        TIMM,
    ),
    "Adafactor, bfloat16 momentum": (
        functools.partial(after, rules.adafactor()),
        functools.partial(timm_optim.AdafactorBigVision, lr=LR, min_dim_size_to_factor=32),
        TIMM,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_equal_the_other_librarys(name, agrees):
    ours, make, reference = CASES[name]
    ours, theirs = ours(), after_theirs(make)
    for leaf in SHAPES:
        assert np.abs(theirs[leaf] - START[leaf]).max() > 0.1, leaf  # the parameters have changed
        agrees(
            f"optimiser: {name}, 20 steps", reference, ours[leaf], theirs[leaf], 2e-2 if "bfloat16" in name else 2e-5
        )


@pytest.mark.parametrize("rule", ["adam", "lion", "sgd"])
def test_a_bfloat16_moment_is_rounded_only_in_storage(rule, agrees):
    """Compared with float64 in which only the moment and, as in optax, its decay rate are rounded to bfloat16."""

    def rounded(x):
        return np.asarray(x, ml_dtypes.bfloat16).astype(np.float64)

    name, leaf = "encoder/block_0/mlp/up/kernel", START["encoder/block_0/mlp/up/kernel"]
    moment, square, keep = np.zeros_like(leaf), np.zeros_like(leaf), rounded(0.9)
    for step, grads in enumerate(GRADS, start=1):
        grad = grads[name]
        if rule == "adam":
            new, square = 0.1 * grad + keep * moment, 0.05 * grad**2 + 0.95 * square
            update = new / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.95**step)) + 1e-8)
        elif rule == "lion":
            new, update = 0.01 * grad + rounded(0.99) * moment, np.sign(0.1 * grad + keep * moment)
        else:
            new = update = grad + keep * moment
        moment, leaf = rounded(new), leaf - LR * update
    make = {
        "adam": lambda: rules.adam(b2=0.95, mu_dtype="bfloat16"),
        "lion": lambda: rules.lion(mu_dtype="bfloat16"),
        "sgd": rules.sgd,
    }
    ours = after(make[rule](), weight_decay=0.0)[name]
    agrees(f"optimiser: {rule}, bfloat16 moment, 20 steps", "its equations in float64", ours, leaf, 5e-3)


def test_muon_equals_timms_without_bias_correction(agrees, monkeypatch):
    """Optax corrects the bias of average and gradient before mixing them, timm does not: start at step 10,000."""
    module = importlib.import_module("timm.optim.muon")  # iterates in bfloat16
    iterate = functools.partial(module.zeropower_via_newtonschulz, dtype=torch.float64)
    monkeypatch.setattr(module, "zeropower_via_newtonschulz", iterate)
    names = ("encoder/block_0/attn/query/kernel", "encoder/block_0/mlp/up/kernel")
    theirs = after_theirs(lambda groups: module.Muon(groups, LR, nesterov=True, ns_coefficients="original"), names)
    ours = after(
        rules.muon(), lambda state: trees.map_named(lambda k, x: x + 10_000 if k.endswith("count") else x, state)
    )
    for name in names:
        agrees("optimiser: Muon, 20 steps", TIMM, ours[name], theirs[name], 2e-5)


def test_layer_decay_equals_timms_except_for_the_last_norm(agrees):
    """timm assigns the final norm to the last block; here it has the full rate, as in the code of arXiv:2111.06377."""
    size = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 1, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", reg_tokens=2, init_values=0.1, **size)
    for group in timm_optim.param_groups_layer_decay(model, layer_decay=0.7):
        for param in group["params"]:
            param.data.fill_(group["lr_scale"])
    theirs = published.read({name: leaf.numpy() for name, leaf in model.state_dict().items()}, {}, "timm").params
    network = ViT(num_classes=5, width=64, depth=3, mlp_dim=256, num_heads=1, patch_size=16)
    tx = scale_by_layer(0.7, lambda: {name: network.layer_of(name) for name in theirs})
    ones = trees.nest({name: jnp.ones(leaf.shape) for name, leaf in theirs.items()})
    ours = trees.flatten(tx.update(ones, tx.init(ones))[0])
    for name, leaf in theirs.items():
        moved = 1 / 0.7 if name.startswith("encoder/norm/") else 1
        agrees("layer decay", TIMM, ours[name], leaf * moved, 1e-6)


def test_lars_is_that_of_mae(agrees):
    """The rule of facebookresearch/mae, util/lars.py, written out in float64."""
    ours = after(rules.lars())
    for name, start in START.items():
        param, momentum = start.copy(), np.zeros(start.shape)
        for grads in GRADS:
            update = grads[name] + (DECAY * param if name.endswith("kernel") else 0.0)
            if param.ndim > 1:
                update = update * 0.001 * np.linalg.norm(param) / np.linalg.norm(update)
            momentum = 0.9 * momentum + update
            param = param - LR * momentum
        agrees(f"lars: {name}", "numpy float64", ours[name], param, 1e-5)
