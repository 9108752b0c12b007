"""CLIP, LiT and CapPa against formulas and other code; gradient caching against the whole batch's gradient."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.peers import torch, transformers
from tests.words import toy
from vit_jax import trees
from vit_jax.config import factory
from vit_jax.data.source import Image, Tokens
from vit_jax.grads.cached import Cached
from vit_jax.grads.gradient import Loss, Plain
from vit_jax.layers.decoder import Decoder
from vit_jax.tasks.caption import caption_losses
from vit_jax.tasks.clip import at_most, softmax_loss
from vit_jax.tasks.siglip import sigmoid_loss
from vit_jax.train.fit import fit
from vit_jax.train.state import State
from vit_jax.train.step import loss_of
from vit_jax.types import UserError

SPEC = {"image": jax.ShapeDtypeStruct((16, 16, 3), "uint8"), "text": jax.ShapeDtypeStruct((8,), "int32")}
FIELDS = {"image": Image(), "text": Tokens(50)}


def task(kind, model=None, text=None, **fields):
    tower = toy.TEXT_TOWER | {"vocab_size": 50, "length": 8} | (text or {})
    model = toy.IMAGE_TOWER | (model or {})
    return factory.build_task({"type": kind, "text": tower, **fields}, model, class_names=(), fields=FIELDS, spec=SPEC)


def batch(b=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (b, 16, 16, 3)), jnp.uint8),
        "text": jnp.asarray(rng.integers(3, 50, (b, 8)), jnp.int32),
    }


def state_of(made, seed=0):
    params = jax.jit(lambda: made.init(jax.random.key(seed), SPEC))()
    return State(step=jnp.zeros((), jnp.int32), params=params, opt_state=(), ema=None, frozen={}, state={})


def unit(b, d, seed):
    x = np.random.default_rng(seed).normal(size=(b, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_clips_loss_and_gradient_are_those_of_transformers(agrees):
    image_text_contrastive_loss = transformers.models.clip.modeling_clip.image_text_contrastive_loss
    image, text = unit(8, 6, 0), unit(8, 6, 1)
    found, grads = jax.value_and_grad(softmax_loss, (0, 1, 2))(jnp.asarray(image), jnp.asarray(text), jnp.float32(14.0))
    leaves = [torch.tensor(x, requires_grad=True) for x in (image, text, np.float32(14.0))]
    theirs = image_text_contrastive_loss(leaves[2] * leaves[1] @ leaves[0].T)
    theirs.backward()
    agrees("CLIP's loss", "transformers", found, theirs.detach(), 1e-5)
    for ours, leaf in zip(grads, leaves, strict=True):
        agrees("CLIP's gradient", "transformers", ours, leaf.grad, 1e-5)


def test_equal_captions_are_no_negatives_of_clip():
    made, given = task("clip.Clip"), batch(6)
    given["text"] = given["text"].at[4].set(given["text"][1])
    state = state_of(made)
    encoded = jax.jit(made.encode)(state.params, given, jax.random.key(0))
    found, aux = jax.jit(made.loss_of)(state.params, encoded, given)
    logits = np.asarray(aux.metrics["scale"] * encoded["image"] @ encoded["text"].T, np.float64)
    kept = np.ones((6, 6), bool)
    kept[1, 4] = kept[4, 1] = False
    exps = np.exp(logits) * kept
    right = np.diagonal(logits)
    expected = (np.log(exps.sum(1)) - right).mean() / 2 + (np.log(exps.sum(0)) - right).mean() / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_scale_of_clip_is_at_most_100():
    made = task("clip.Clip")
    params = state_of(made).params | {"log_scale": jnp.float32(6.0)}
    _, aux = jax.jit(made.loss)(params, {}, batch(), jax.random.key(0))
    np.testing.assert_allclose(aux.metrics["scale"], 100.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "slope", "expected"), [(1.0, 3.0, 3.0), (5.0, 3.0, 3.0), (5.0, -3.0, 0.0), (1.0, -3.0, -3.0)]
)
def test_a_scale_above_its_bound_can_fall_and_not_rise(x, slope, expected):
    value, grad = jax.value_and_grad(lambda x: slope * at_most(x, 4.0))(jnp.float32(x))
    assert (float(value), float(grad)) == (slope * min(x, 4.0), expected)


@pytest.mark.parametrize("kind", ["siglip.Siglip", "clip.Clip"])
def test_caching_gives_the_gradient_of_the_whole_batch(kind, agrees):
    made = task(kind)
    state, key = state_of(made), jax.random.key(1)
    results = [
        jax.jit(lambda p, b, g=g: g(loss_of(made, state), p, b, key, lambda tree: tree, 1.0))(state.params, batch())
        for g in (Plain(), Cached(4))
    ]
    agrees("gradient caching: loss", "the whole batch", results[1].metrics["loss"], results[0].metrics["loss"], 1e-6)
    for name, grad in trees.flatten(results[0].grads).items():
        agrees("gradient caching: gradient", "the whole batch", trees.flatten(results[1].grads)[name], grad, 1e-5)


def test_caching_draws_the_same_dropout_and_drop_path_in_both_passes(agrees):
    """Against the gradient of the same parts, whose encoded examples are kept and not encoded again."""
    noise = {"dropout": 0.3, "drop_path": 0.4}
    made = task("siglip.Siglip", model=noise | {"depth": 1}, text=noise | {"depth": 1})
    state, key, given = state_of(made), jax.random.key(1), batch()

    def kept(params):
        parts = [jax.tree.map(lambda x, i=i: x[i::2], given) for i in range(2)]
        encoded = [made.encode(params, part, jax.random.fold_in(key, i)) for i, part in enumerate(parts)]
        whole = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1).reshape(8, -1), *encoded)
        return made.loss_of(params, whole, given)[0]

    expected, grads = jax.jit(jax.value_and_grad(kept))(state.params)
    cached = jax.jit(lambda key: Cached(2)(loss_of(made, state), state.params, given, key, lambda tree: tree, 1.0))
    found = cached(key)
    agrees("gradient caching with dropout: loss", "parts that are kept", found.metrics["loss"], expected, 1e-6)
    for name, grad in trees.flatten(grads).items():
        agrees(
            "gradient caching with dropout: gradient",
            "parts that are kept",
            trees.flatten(found.grads)[name],
            grad,
            1e-5,
        )
    other = cached(jax.random.key(2))
    assert abs(float(other.metrics["loss"]) - float(expected)) > 1e-4


def test_caching_keeps_no_activations_of_the_whole_batch():
    """The memory of the compiled gradient is far below the whole batch's, whose blocks keep theirs."""
    made = task("siglip.Siglip", model={"depth": 4, "mlp_dim": 128})
    state, key = state_of(made), jax.random.key(0)

    def memory(method):
        step = jax.jit(lambda p, b: method(loss_of(made, state), p, b, key, lambda tree: tree, 1.0))
        return step.lower(state.params, batch(64)).compile().memory_analysis().temp_size_in_bytes

    assert memory(Cached(16)) < memory(Plain()) / 4


def test_caching_is_refused_for_a_task_that_compares_nothing(tiny, tmp_path):
    tiny.grad = {"type": "cached.Cached", "microbatches": 2}
    with pytest.raises(UserError, match=r"such as siglip\.Siglip"):
        fit(tiny, tmp_path / "run")


def test_a_batch_that_the_parts_do_not_divide_is_refused():
    with pytest.raises(UserError, match="does not divide the batch of 8"):
        Cached(3)(Loss(lambda *_: None), {}, batch(), jax.random.key(0), None, 1.0)


def test_the_locked_tower_gets_no_gradient():
    made = task("lit.Lit", model={"dropout": 0.5})
    params = state_of(made).params
    grads = jax.jit(jax.grad(lambda p: made.loss(p, {}, batch(), jax.random.key(0))[0]))(params)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(grads["backbone"]))
    assert any((np.asarray(x) != 0).any() for x in jax.tree.leaves(grads["text"]))


def test_cached_features_give_the_loss_of_their_images():
    made, given = task("lit.Lit", image_shape=[16, 16, 3]), batch()
    params = state_of(made).params
    features = jax.jit(made.predict)({"params": params}, {"image": given["image"]})["features"]
    whole, of_features = (
        jax.jit(made.loss)(params, {}, b, jax.random.key(0))[0]
        for b in (given, {"text": given["text"], "features": features})
    )
    np.testing.assert_allclose(of_features, whole, rtol=1e-5)


def decoder(**fields):
    made = Decoder(20, 16, 2, 32, 2, **fields)
    rng = np.random.default_rng(0)
    text, patches = (
        jnp.asarray(rng.integers(0, 20, (2, 6)), jnp.int32),
        jnp.asarray(rng.normal(size=(2, 5, 12)), jnp.float32),
    )
    params = jax.jit(made.init)(jax.random.key(0), text, patches, jnp.zeros(2, bool))["params"]
    # The last layer begins at zero.
    noise = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    return made, noise, text, patches


def test_a_token_is_predicted_from_those_before_it_alone():
    made, params, text, patches = decoder()
    logits = jax.jit(made.apply)({"params": params}, text, patches, jnp.zeros(2, bool))
    changed = jax.jit(made.apply)({"params": params}, text.at[:, 3].set(7), patches, jnp.zeros(2, bool))
    np.testing.assert_allclose(logits[:, :4], changed[:, :4], rtol=1e-5, atol=1e-6)
    assert np.abs(logits[:, 4:] - changed[:, 4:]).max() > 1e-3


def test_in_parallel_no_token_is_seen_and_the_image_is():
    made, params, text, patches = decoder()
    both = jnp.ones(2, bool)
    logits = jax.jit(made.apply)({"params": params}, text, patches, both)
    np.testing.assert_array_equal(logits, jax.jit(made.apply)({"params": params}, text * 0, patches, both))
    assert np.abs(logits - jax.jit(made.apply)({"params": params}, text, patches * 2, both)).max() > 1e-3
    one = jax.jit(made.apply)({"params": params}, text, patches, jnp.array([True, False]))
    np.testing.assert_allclose(one[0], logits[0], rtol=1e-5, atol=1e-6)


def test_the_decoders_blocks_have_no_biases():
    _, params, _, _ = decoder()
    assert [name for name in trees.flatten(params) if name.endswith("bias")] == ["logits/bias", "norm/bias"]


def test_padding_after_the_first_one_does_not_count():
    made, params, text, patches = decoder()
    text = jnp.array([[5, 4, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]], jnp.int32)
    auto = jnp.zeros(2, bool)
    found = jax.jit(lambda *given: caption_losses(made, *given, auto, 0, jax.random.key(0)))(params, text, patches)
    logits = jax.jit(made.apply)({"params": params}, text, patches, auto)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)).swapaxes(1, 2), torch.tensor(np.asarray(text)).long(), reduction="none"
    )
    np.testing.assert_allclose(found, [theirs[0, :3].mean(), theirs[1].mean()], rtol=1e-5)


def test_cappa_trains_from_a_config_and_leaves_an_encoder(place, tmp_path):
    config = toy.config(place)
    sizes = {"decoder_width": 16, "decoder_depth": 1, "decoder_mlp_dim": 32, "decoder_heads": 2}
    config.task = {"type": "caption.Caption", **sizes}
    config.evals, config.steps = {}, 2
    config.data.eval_preprocess = "resize(16)"
    fit(config, tmp_path / "run")
    loaded = vit_jax.load(tmp_path / "run")
    assert loaded(place / "red_bar_0.png")["features"].shape == (1, 16)


def test_clip_trains_from_a_config_with_caching(place, tmp_path):
    config = toy.config(place, "clip.Clip")
    config.task.text.update({"causal": True, "pool": "eos", "out_bias": False})
    config.grad, config.steps = {"type": "cached.Cached", "microbatches": 2}, 2
    fit(config, tmp_path / "run")


def test_a_run_begins_from_both_towers_of_another(place, tmp_path):
    config = toy.config(place)
    config.steps, config.evals, config.data.eval_preprocess = 2, {}, "resize(16)"
    fit(config, tmp_path / "first")
    config.init, config.optim.lr = {"ref": str(tmp_path / "first")}, 0.0
    fit(config, tmp_path / "second")
    one, two = (vit_jax.load(tmp_path / name).weights["params"] for name in ("first", "second"))
    for name, leaf in trees.flatten(one).items():
        np.testing.assert_array_equal(leaf, trees.flatten(two)[name], err_msg=name)


def test_both_losses_are_those_of_open_clip(agrees):
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("open_clip_torch is not installed")
    # Its package imports torchvision, its losses alone do not.
    spec = importlib.util.spec_from_file_location("open_clip_losses", Path(found.origin).parent / "loss.py")
    losses = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(losses)
    image, text, ids = unit(8, 6, 0), unit(8, 6, 1), jnp.arange(8, dtype=jnp.int32)[:, None]
    theirs = losses.ClipLoss()(torch.tensor(image), torch.tensor(text), torch.tensor(14.0))
    agrees(
        "CLIP's loss", "open_clip", softmax_loss(jnp.asarray(image), jnp.asarray(text), jnp.float32(14.0)), theirs, 1e-5
    )
    theirs = losses.SigLipLoss()(torch.tensor(image), torch.tensor(text), torch.tensor(10.0), torch.tensor(-10.0))
    arguments = (jnp.asarray(image), jnp.asarray(text), ids, jnp.float32(10.0), jnp.float32(-10.0))
    agrees("SigLIP's loss", "open_clip", sigmoid_loss(*arguments, 4), theirs, 1e-5)
