"""The stages of a network, which a task may enter between."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import crossed
from tests.models.helpers import apply, images, init
from vit_jax import trees
from vit_jax.config.factory import build
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

X = images(2, 8, 12, 3)
GRID = (2, 3)
POOLS = ("tok", "gap", "map")
VITS = {
    **{pool: {"pool": pool} for pool in POOLS},
    "distilled": {"distilled": True, "registers": 2},
    "norm after pool": {"pool": "gap", "norm_after_pool": True, "class_token": True, "rep_size": 5},
}
WAYS = {"plain": {}, "scan": {"scan": True}, "remat": {"remat": "full"}}


def vit(**fields):
    return ViT(3, 8, 3, 16, 2, patch_size=4, **fields)


def mixer():
    return Mixer(3, 8, 3, 4, 16, patch_size=4)


def stage(model, params, method, *arguments, **options):
    """The result of one method."""
    run = functools.partial(model.apply, method=method, **options)
    return jax.jit(lambda params, *arguments: run({"params": params}, *arguments))(params, *arguments)


@pytest.mark.parametrize(("name", "way"), crossed([*VITS], [*WAYS]))
def test_the_stages_of_a_vit_one_after_the_other_are_the_whole(name, way):
    model = vit(**VITS[name], **WAYS[way])
    params = init(model, X)
    out = X
    for method in ("embed", "encode", "pool_tokens", "apply_head"):
        out = stage(model, params, method, out)
    assert out.shape == (2, 3)
    np.testing.assert_allclose(out, apply(model, params, X), rtol=1e-5, atol=1e-5)


def test_the_stages_of_a_hybrid_and_of_a_mixer_one_after_the_other_are_the_whole():
    x = images(2, 32, 32, 3)
    model = vit(stem=ResNet((1, 1), width=32), pool="map").clone(patch_size=1)
    params = init(model, x)
    out = x
    for method in ("embed", "encode", "pool_tokens", "apply_head"):
        out = stage(model, params, method, out)
    np.testing.assert_allclose(out, apply(model, params, x), rtol=1e-5, atol=1e-5)
    model = mixer()
    params = init(model, X)
    encoded = stage(model, params, "encode", stage(model, params, "embed", X))
    logits = stage(model, params, "apply_head", encoded.mean(axis=1))
    np.testing.assert_allclose(logits, apply(model, params, X), rtol=1e-5, atol=1e-5)


PREFIXES = {"tok": 1, "gap": 0, "map": 0, "distilled": 4}


@pytest.mark.parametrize(("name", "way"), crossed([*PREFIXES], [*WAYS]))
def test_features_of_a_vit(name, way):
    model, prefix = vit(**VITS[name], **WAYS[way]), PREFIXES[name]
    params = init(model, X)
    found = stage(model, params, "features", X)
    _, sown = apply(model, params, X, mutable=["intermediates"])
    sown = sown["intermediates"]
    tokens = prefix + GRID[0] * GRID[1]
    assert (tuple(found["grid"]), found["prefix"]) == (GRID, prefix)
    assert (found["tokens"].shape, found["pooled"].shape) == ((2, tokens, 8), (2, 8))
    assert [x.shape for x in found["stages"]] == [(2, tokens, 8)] * 3
    np.testing.assert_allclose(found["tokens"], sown["encoded"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["pooled"], sown["pooled"], rtol=1e-5, atol=1e-5)
    for i, after in enumerate(found["stages"]):
        np.testing.assert_allclose(after, sown["encoder"][f"block_{i}"]["out"], rtol=1e-5, atol=1e-5)


def test_features_of_a_hybrid_a_mixer_and_a_resnet():
    x = images(2, 32, 48, 3)
    hybrid = vit(stem=ResNet((1, 1), width=32)).clone(patch_size=2)
    found = stage(hybrid, init(hybrid, x), "features", x)
    assert (tuple(found["grid"]), found["prefix"]) == ((2, 3), 1)
    assert (found["tokens"].shape, found["pooled"].shape) == ((2, 7, 8), (2, 8))
    assert [y.shape for y in found["stages"]] == [(2, 7, 8)] * 3

    found = stage(mixer(), init(mixer(), X), "features", X)
    assert (tuple(found["grid"]), found["prefix"]) == (GRID, 0)
    assert (found["tokens"].shape, found["pooled"].shape) == ((2, 6, 8), (2, 8))
    assert [y.shape for y in found["stages"]] == [(2, 6, 8)] * 3
    np.testing.assert_allclose(found["pooled"], found["tokens"].mean(axis=1), rtol=1e-5, atol=1e-6)

    resnet = ResNet((1, 1), width=32)
    params = init(resnet, x)
    found = stage(resnet, params, "features", x)
    assert (tuple(found["grid"]), found["prefix"]) == ((4, 6), 0)
    assert tuple(found["grid"]) == resnet.grid((32, 48))
    assert (found["tokens"].shape, found["pooled"].shape) == ((2, 24, 256), (2, 256))
    # The root, then each stage.
    assert [y.shape for y in found["stages"]] == [(2, 8, 12, 32), (2, 8, 12, 128), (2, 4, 6, 256)]
    last = apply(resnet, params, x)
    np.testing.assert_allclose(found["stages"][-1], last, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["tokens"], last.reshape(2, 24, 256), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["pooled"], last.mean(axis=(1, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pool", "way"), crossed([*POOLS], [*WAYS]))
def test_a_masked_token_changes_no_other_one(pool, way):
    model = vit(pool=pool, **WAYS[way])
    params = init(model, X)
    tokens = stage(model, params, "embed", X)
    n = tokens.shape[1]
    # In the middle and at the end, never the prefix; of large values, which would be seen.
    kept = np.array([i for i in range(n) if i not in (2, n - 1)])
    mask = jnp.zeros((2, n), bool).at[:, kept].set(True)
    filled = jnp.where(mask[:, :, None], tokens, 100 * images(*tokens.shape))

    expected = stage(model, params, "encode", tokens[:, kept])
    encoded = stage(model, params, "encode", filled, mask)
    assert encoded.shape == tokens.shape
    np.testing.assert_allclose(encoded[:, kept], expected, rtol=1e-5, atol=1e-5)
    # Without the mask they are seen.
    assert np.abs(stage(model, params, "encode", filled)[:, kept] - expected).max() > 1e-2

    pooled = stage(model, params, "pool_tokens", expected)
    filled = jnp.where(mask[:, :, None], encoded, 100 * images(*tokens.shape))
    np.testing.assert_allclose(stage(model, params, "pool_tokens", filled, mask), pooled, rtol=1e-5, atol=1e-5)
    if pool != "tok":
        assert np.abs(stage(model, params, "pool_tokens", filled) - pooled).max() > 1e-2


@pytest.mark.parametrize(("pool", "way"), crossed([*POOLS], [*WAYS]))
def test_no_gradient_reaches_a_masked_token(pool, way):
    model = vit(pool=pool, **WAYS[way])
    params = init(model, X)
    tokens = stage(model, params, "embed", X)
    mask = jnp.ones(tokens.shape[:2], bool).at[0, 3].set(False).at[1, -1].set(False)

    def total(tokens):
        encoded = model.apply({"params": params}, tokens, mask, method="encode")
        return jnp.square(model.apply({"params": params}, encoded, mask, method="pool_tokens")).sum()

    reached = np.abs(jax.jit(jax.grad(total))(tokens)).max(axis=2) > 0
    np.testing.assert_array_equal(reached, mask)


def test_a_mask_that_is_all_true_is_none():
    model = vit(pool="map")
    params = init(model, X)
    tokens = stage(model, params, "embed", X)
    mask = jnp.ones(tokens.shape[:2], bool)
    expected, found = stage(model, params, "encode", tokens), stage(model, params, "encode", tokens, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        stage(model, params, "pool_tokens", found, mask),
        stage(model, params, "pool_tokens", expected),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_kernel_of_tpus_takes_a_mask(way):
    plain, pallas = (vit(attention=form, **way) for form in ("plain", "pallas"))
    params = init(vit(), X)
    tokens = stage(plain, params, "embed", X)
    mask = jnp.arange(tokens.shape[1])[None] < jnp.asarray([[3], [5]])
    expected, found = (stage(model, params, "encode", tokens, mask) for model in (plain, pallas))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_kernel_of_gpus_refuses_a_mask(way):
    model, params = vit(attention="cudnn", **way), init(vit(), X)
    tokens = stage(vit(), params, "embed", X)
    with pytest.raises(UserError, match=r"model\.attention='cudnn' .* mask.*'plain' or 'auto'"):
        stage(model, params, "encode", tokens, jnp.ones(tokens.shape[:2], bool))


def test_a_head_of_its_own_keeps_its_names_and_begins_with_the_deviation_it_is_given():
    network = {"type": "vit.ViT", "width": 512, "depth": 1, "mlp_dim": 8, "num_heads": 2, "patch_size": 4}
    head = {"type": "linear", "std": 0.02}
    model = build({**network, "head": head}, "model", num_classes=3)
    names, plain = (
        trees.flatten(jax.jit(m.init)(jax.random.key(0), X)["params"])
        for m in (model, build(network, "model", num_classes=3))
    )
    assert {name: leaf.shape for name, leaf in names.items()} == {name: leaf.shape for name, leaf in plain.items()}
    assert names["head/kernel"].shape == (512, 3)
    assert np.std(names["head/kernel"]) == pytest.approx(0.02, rel=0.1)
    assert np.abs(np.mean(names["head/kernel"])) < 0.002
    assert not names["head/bias"].any()
    assert not plain["head/kernel"].any()


def test_both_heads_of_a_distilled_vit_are_of_the_kind_that_is_given():
    spec = {"type": "vit.ViT", "width": 512, "depth": 1, "mlp_dim": 8, "num_heads": 2, "patch_size": 4}
    model = build(
        {**spec, "distilled": True, "head": {"type": "linear", "std": 0.02, "bias": -3.0}}, "model", num_classes=3
    )
    params = trees.flatten(jax.jit(model.init)(jax.random.key(0), X)["params"])
    for name in ("head", "head_dist"):
        assert np.std(params[f"{name}/kernel"]) == pytest.approx(0.02, rel=0.1)
        np.testing.assert_array_equal(params[f"{name}/bias"], [-3.0] * 3)
    assert (params["head/kernel"] != params["head_dist/kernel"]).any()


def test_every_parameter_has_its_layer():
    stem = ResNet((1,), width=32)
    model = vit(distilled=True, registers=2, pre_norm=True, stem=stem)
    names = trees.flatten(jax.eval_shape(model.init, jax.random.key(0), images(1, 32, 32, 3))["params"])
    layers = {name: model.layer_of(name) for name in names}
    before = ("stem/", "embed/", "cls", "dist", "registers", "posemb/", "pre_norm/")
    for name, layer in layers.items():
        if name.startswith(before):
            assert layer == 0, name
        elif "block_" in name:
            assert layer == 1 + int(name.partition("block_")[2][0]), name
        else:
            assert layer == 4, name
    assert {name.split("/")[0] for name, layer in layers.items() if layer == 4} == {"encoder", "head", "head_dist"}
    assert set(layers.values()) == set(range(5))


def test_parameters_of_a_mixer_and_of_a_resnet_have_their_layers():
    network, resnet = mixer(), ResNet((1, 1), width=32)
    names = ("embed/kernel", "encoder/block_1/tokens/up/kernel", "encoder/norm/scale", "head/bias")
    assert [network.layer_of(name) for name in names] == [0, 2, 4, 4]
    assert [resnet.layer_of(n) for n in ("root/kernel", "root_norm/scale", "stage_1/unit_0/conv1/kernel")] == [0, 0, 2]


def test_a_mask_token_stands_for_masked_patches_at_their_positions():
    model = vit(mask_token=True)
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    masked = jnp.array([[True, False, True, False, False, True], [False] * 5 + [True]])
    seen = stage(model, params, "embed", X, masked=masked)
    whole = stage(model, params, "embed", X)
    at_masked = params["mask_token"] + params["posemb"]["table"][:, 1:]
    np.testing.assert_allclose(seen[:, 1:], jnp.where(masked[:, :, None], at_masked, whole[:, 1:]), atol=1e-6)
    with pytest.raises(UserError, match="mask_token=True"):
        vit().apply({"params": init(vit(), X)}, X, masked=masked, method=vit().embed)
