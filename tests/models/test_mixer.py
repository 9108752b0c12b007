import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.helpers import apply, count, images, init, sown
from tests.peers import timm, torch
from vit_jax.config.factory import build
from vit_jax.models import fill
from vit_jax.models.mixer import Mixer
from vit_jax.types import UserError

SMALL = {"num_classes": 5, "width": 16, "depth": 2, "tokens_mlp_dim": 12, "channels_mlp_dim": 24, "patch_size": 4}
# Published counts at 224 px and 1000 classes; L/32 is timm's.
COUNTS = {
    "S/16": 18_528_264,
    "S/32": 19_104_624,
    "B/16": 59_880_472,
    "B/32": 60_293_428,
    "L/16": 208_196_168,
    "L/32": 206_939_264,
}


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_count_is_the_published_one(variant):
    model = build({"type": "mixer.Mixer", "variant": variant, "num_classes": 1000}, "model")
    assert count(model) == COUNTS[variant]


def test_logits_are_those_of_timm():
    x = images(2, 8, 8, 3)
    model = Mixer(**SMALL, mlp="gelu")
    params = init(model, x)
    peer = timm.models.mlp_mixer.MlpMixer(
        num_classes=5, img_size=8, patch_size=4, num_blocks=2, embed_dim=16, mlp_ratio=(12 / 16, 24 / 16)
    ).eval()
    state = {
        "stem.proj.weight": params["embed"]["kernel"].transpose(3, 2, 0, 1),
        "stem.proj.bias": params["embed"]["bias"],
    }
    layers = {"norm": params["encoder"]["norm"], "head": params["head"]}
    for i in range(2):
        block = params["encoder"][f"block_{i}"]
        layers |= {f"blocks.{i}.{name}": block[name] for name in ("norm1", "norm2")}
        for ours, name in (("tokens", "mlp_tokens"), ("channels", "mlp_channels")):
            layers |= {f"blocks.{i}.{name}.fc1": block[ours]["up"], f"blocks.{i}.{name}.fc2": block[ours]["down"]}
    for name, layer in layers.items():
        state[f"{name}.bias"] = layer["bias"]
        state[f"{name}.weight"] = layer["kernel"].T if "kernel" in layer else layer["scale"]
    peer.load_state_dict({name: torch.tensor(np.array(leaf)) for name, leaf in state.items()})
    with torch.no_grad():
        expected = peer(torch.tensor(np.array(x.transpose(0, 3, 1, 2)))).numpy()
    np.testing.assert_allclose(apply(model, params, x), expected, atol=1e-5)


def test_patches_are_pooled_by_their_mean():
    x = images(2, 8, 12, 3)
    model = Mixer(**SMALL)
    params = init(model, x)
    seen = sown(model, params, x)
    assert seen["tokens"].shape == seen["encoder"]["block_1"]["out"].shape == (2, 6, 16)
    np.testing.assert_allclose(seen["features"], seen["encoded"].mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(seen["features"], apply(model.clone(num_classes=0), params, x))


def test_a_patch_reaches_the_others_through_the_mixing_of_tokens_alone():
    x = images(1, 8, 8, 3)
    model = Mixer(**SMALL)
    params = init(model, x)

    def reach(params):
        changed = x.at[0, 0, 0, 0].add(1.0)
        difference = sown(model, params, x)["encoded"] - sown(model, params, changed)["encoded"]
        return (jnp.abs(difference[0]).max(axis=1) > 1e-5).tolist()

    def cut(path, leaf):
        return 0 * leaf if "tokens" in jax.tree_util.keystr(path) else leaf

    assert reach(params) == [True] * 4
    assert reach(jax.tree_util.tree_map_with_path(cut, params)) == [True, False, False, False]


def test_dtype_reaches_every_module_and_param_dtype_every_parameter():
    x = images(2, 8, 8, 3)
    model = Mixer(**SMALL, dtype="bfloat16", param_dtype="bfloat16")
    params = init(model, x)
    out = apply(model, params, x, mutable=["intermediates"], capture_intermediates=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, out))} == {jnp.dtype("bfloat16")}


def test_drop_path_acts_in_training_alone():
    x = images(8, 8, 8, 3)
    model = Mixer(**SMALL, drop_path=0.5)
    params = init(model, x)
    still = [apply(model, params, x) for _ in range(2)]
    moving = [apply(model, params, x, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    np.testing.assert_array_equal(*still)
    assert jnp.abs(moving[0] - moving[1]).max() > 1e-3


@pytest.mark.parametrize(("scale_by_keep", "kept"), [(False, 1.0), (True, 2.0)])
def test_kept_branches_are_scaled_only_where_asked(scale_by_keep, kept):
    """One block of rate 1/2: its branch across channels is dropped or, times `kept`, added (big_vision keeps it as it is)."""
    x = images(32, 8, 8, 3)
    model = Mixer(**(SMALL | {"depth": 1}), drop_path=0.5, drop_path_rule="constant", scale_by_keep=scale_by_keep)
    params = init(model, x)
    params["encoder"]["block_0"]["tokens"] = jax.tree.map(jnp.zeros_like, params["encoder"]["block_0"]["tokens"])
    tokens = sown(model, params, x)["tokens"]
    branch = sown(model, params, x)["encoder"]["block_0"]["out"] - tokens
    _, state = model.apply(
        {"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["intermediates"]
    )
    added = state["intermediates"]["encoder"]["block_0"]["out"] - tokens
    factors = np.unique(np.round(np.asarray((added * branch).sum((1, 2)) / (branch**2).sum((1, 2))), 3))
    np.testing.assert_allclose(factors, [0.0, kept], atol=1e-3)


def test_head_begins_at_zero_with_the_bias_asked_for():
    model = Mixer(**SMALL, head_bias=-6.9)
    logits = jax.jit(model.init_with_output)(jax.random.key(0), images(3, 8, 8, 3))[0]
    np.testing.assert_allclose(logits, -6.9, rtol=1e-6)


@pytest.mark.parametrize("type_name", ["mixer.Mixer", "vit_jax.models.mixer:Mixer"])
def test_explicit_fields_win_over_those_of_the_variant(type_name):
    filled = fill({"type": type_name, "variant": "S/16", "tokens_mlp_dim": 7})
    assert (filled["tokens_mlp_dim"], filled["channels_mlp_dim"], filled["patch_size"]) == (7, 2048, 16)
    assert "variant" not in filled


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"depth": 0}, "depth=0"), ({"patch_size": 0}, "patch_size=0"), ({"drop_path": 1.0}, "drop_path=1.0")],
)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Mixer(**(SMALL | fields))


def test_sizes_of_other_models_are_refused():
    with pytest.raises(UserError, match="So400m"):
        fill({"type": "mixer.Mixer", "variant": "So400m/14"})
