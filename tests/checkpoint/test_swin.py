"""Swin against timm and transformers, from perturbed random weights, both directions."""

import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import crossed, sampled
from tests.peers import timm, torch, transformers
from vit_jax import inference, trees
from vit_jax.cli import convert
from vit_jax.config.factory import build
from vit_jax.models import fill
from vit_jax.models.swin import Swin
from vit_jax.pretrained import swin
from vit_jax.tasks.simmim import Simmim
from vit_jax.types import UserError

RNG = np.random.default_rng(0)
SMALL = {"depths": (2, 4, 2), "num_heads": (2, 4, 8)}


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def of_timm(version, size, **args):
    names = {1: "swin_tiny_patch4_window7_224", 2: "swinv2_tiny_window8_256"}
    args = {"img_size": size, "embed_dim": 24, "window_size": 4, **SMALL, **args}
    model = perturbed(timm.create_model(names[version], num_classes=5, **args))
    config = {
        "architecture": names[version],
        "num_classes": 5,
        "model_args": args,
        "pretrained_cfg": {"input_size": [3, *size]},
    }
    return model, config


def logits_of_timm(model, images):
    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 3, 1, 2)).numpy()


def pixels(size):
    return RNG.normal(size=(2, *size, 3)).astype(np.float32)


def apply(source, images):
    """The logits of what `read` returned, and its network."""
    network = build(source.model, "model")
    return np.asarray(jax.jit(network.apply)({"params": trees.nest(source.params)}, images))


def arrays_of(model):
    return {name: array.numpy() for name, array in model.state_dict().items()}


@pytest.mark.parametrize(
    ("version", "size", "args"),
    [
        (1, (64, 64), {}),
        (1, (128, 192), {}),
        (1, (64, 64), {"window_size": 2, "mlp_ratio": 2.0}),
        (2, (64, 64), {}),
        (2, (128, 192), {"pretrained_window_sizes": (3, 3, 2)}),
    ],
    ids=lambda value: str(value),
)
def test_logits_are_those_of_timm(version, size, args, agrees):
    model, config = of_timm(version, size, **args)
    images = pixels(size)
    found = apply(swin.read(arrays_of(model), config, "x"), images)
    agrees(f"Swin v{version}: logits", "timm", found, logits_of_timm(model, images), 1e-5)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (72, 100), (90, 61)])
def test_logits_are_those_of_transformers_whether_windows_tile_or_not(version, size, agrees):
    kind = {1: "Swin", 2: "Swinv2"}[version]
    config = getattr(transformers, f"{kind}Config")(
        image_size=64, patch_size=4, embed_dim=24, depths=[2, 4, 2], num_heads=[2, 4, 8], window_size=3, num_labels=5
    )
    model = perturbed(getattr(transformers, f"{kind}ForImageClassification")(config))
    images = pixels(size)
    with torch.no_grad():
        expected = model(torch.tensor(images).permute(0, 3, 1, 2)).logits.numpy()
    found = apply(swin.read(arrays_of(model), config.to_dict(), "x"), images)
    agrees(f"Swin v{version}: logits", "transformers", found, expected, 1e-5)


@pytest.mark.parametrize(("version", "to"), crossed([1, 2], ["timm", "hf"]))
def test_a_converted_swin_gives_the_same_logits_there(version, to, tmp_path, capsys):
    model, config = of_timm(version, (64, 64))
    (tmp_path / "theirs").mkdir()
    save_file(
        {k: np.ascontiguousarray(v) for k, v in arrays_of(model).items()}, tmp_path / "theirs" / "model.safetensors"
    )
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    flags = [f"--model={tmp_path / 'theirs'}", f"--to={to}", f"--out={tmp_path / 'ours'}"]
    assert convert.main(flags) == 0, capsys.readouterr()
    library = {"timm": "timm", "hf": "transformers"}[to]
    assert f"OK: {library} gives the same logits" in capsys.readouterr().out
    assert "of 5 classes" not in repr(inference.load(tmp_path / "ours").class_names)


@pytest.mark.parametrize(
    ("variant", "name"),
    [("T", "swin_tiny_patch4_window7_224"), ("S", "swin_small_patch4_window7_224"), ("B", "swin_base_patch4_window7_224"),
     ("L", "swin_large_patch4_window7_224")],
)  # fmt: skip
def test_published_sizes_have_as_many_parameters_as_timm_counts(variant, name):
    with torch.device("meta"):
        expected = sum(p.numel() for p in timm.create_model(name).parameters())
    network = build(fill({"type": "swin.Swin", "variant": variant, "num_classes": 1000}), "model")
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_simmim_on_a_swin_is_that_of_transformers(agrees):
    config = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=24,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=4,
        encoder_stride=16,
    )
    model = perturbed(transformers.SwinForMaskedImageModeling(config))
    images = RNG.integers(0, 256, (2, 64, 64, 3), np.uint8)
    masked = np.tile(np.array([True, False] * 8), (2, 1))
    task = Simmim(
        build({**swin.read(arrays_of(model), config.to_dict(), "x").model, "num_classes": 0}, "model"), unit=1
    )
    source = swin.read(arrays_of(model), config.to_dict(), "x")
    kernel = (
        model.decoder[0]
        .weight.detach()
        .numpy()[:, :, 0, 0]
        .reshape(3, 16, 16, -1)
        .transpose(3, 1, 2, 0)
        .reshape(96, -1)
    )
    bias = model.decoder[0].bias.detach().numpy().reshape(3, 16, 16).transpose(1, 2, 0).reshape(-1)
    params = {
        "backbone": jax.tree.map(jnp.asarray, trees.nest(source.params)),
        "decoder": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
    }
    batch = {"image": jnp.asarray(images), "masked": jnp.asarray(masked)}
    found, _ = jax.jit(task.loss)(params, {}, batch, jax.random.key(0))
    normalized = np.asarray(task.normalize(jnp.asarray(images)))
    patches = np.kron(masked.reshape(2, 4, 4), np.ones((1, 4, 4), bool)).reshape(2, -1)
    with torch.no_grad():
        theirs = model(torch.tensor(normalized).permute(0, 3, 1, 2), bool_masked_pos=torch.tensor(patches)).loss
    agrees("SimMIM on Swin: loss", "transformers", found, theirs.item(), 1e-5)


WAYS = {"scan": {"scan": True}, "remat": {"remat": "full"}, "both": {"scan": True, "remat": "inner"}}


PLAIN = Swin(3, 8, (2, 4), (2, 2), window=2, drop_path=0.2)


def loss_and_gradients(network, params, images):
    return jax.jit(jax.value_and_grad(lambda p: jnp.square(network.apply({"params": p}, images)).sum()))(params)


@functools.cache
def plain():
    """The images, parameters and results of a network that neither loops nor computes anything again."""
    images = jnp.asarray(pixels((32, 32)))
    params = jax.tree.map(lambda x: x + 0.1, jax.jit(PLAIN.init)(jax.random.key(0), images)["params"])
    return images, params, loss_and_gradients(PLAIN, params, images)


@pytest.mark.parametrize("way", sampled(WAYS, [*WAYS][-1]))
def test_scan_and_remat_change_neither_results_nor_gradients(way):
    other, (images, params, expected) = PLAIN.clone(**WAYS[way]), plain()
    shapes = jax.eval_shape(other.init, jax.random.key(0), images)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    found = loss_and_gradients(other, params, images)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


def test_the_kernel_of_tpus_gives_the_same_results_and_gradients():
    network, images = Swin(3, 8, (2,), (2,), window=4), jnp.asarray(pixels((32, 32)))
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + 0.3 * noise.standard_normal(x.shape), jax.jit(network.init)(jax.random.key(0), images)["params"]
    )
    expected = loss_and_gradients(network, params, images)
    with mock.patch("vit_jax.layers.windows.attend.choose", return_value="pallas"):
        found = loss_and_gradients(network, params, images)
    assert np.abs(expected[1]["stage_0"]["block_1"]["attn"]["offset_bias"]).max() > 1e-3
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_layers_and_features_follow_the_stages():
    network = Swin(3, 8, (2, 2, 2), (2, 2, 2), window=2)
    names = [
        "embed/kernel",
        "stage_0/block_1/attn/query/kernel",
        "stage_0/merge/norm/scale",
        "stage_2/block_0/norm1/scale",
        "head/kernel",
    ]
    assert [network.layer_of(name) for name in names] == [0, 2, 2, 5, 7]
    images = jnp.asarray(pixels((40, 56)))
    params = jax.jit(network.init)(jax.random.key(0), images)
    found = jax.jit(functools.partial(network.apply, method=network.features))(params, images)
    found |= {name: jax.tree.map(int, found[name]) for name in ("grid", "grids")}
    assert found["grids"] == [(10, 14), (5, 7), (3, 4)]
    assert [x.shape for x in found["stages"]] == [(2, 140, 8), (2, 35, 16), (2, 12, 32)]
    assert network.grid((40, 56)) == found["grid"] == (3, 4)


def test_stages_are_those_of_timms_forward_intermediates(agrees):
    model, config = of_timm(1, (64, 64))
    images = pixels((64, 64))
    with torch.no_grad():
        expected = model.forward_intermediates(torch.tensor(images).permute(0, 3, 1, 2), intermediates_only=True)
    source = swin.read(arrays_of(model), config, "x")
    network = build(source.model, "model")
    features = jax.jit(functools.partial(network.apply, method=network.features))
    found = features({"params": jax.tree.map(jnp.asarray, trees.nest(source.params))}, jnp.asarray(images))
    for ours, (rows, columns), theirs in zip(found["stages"], found["grids"], expected, strict=True):
        maps = np.asarray(ours).reshape(2, rows, columns, -1).transpose(0, 3, 1, 2)
        agrees("Swin: stages, without the norm", "timm", maps, theirs.numpy(), 1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": (3, 2)}, r"width of 8 cannot be split into model\.num_heads\[0\]=3"),
        ({"depths": (2,)}, "expected a number of each stage"),
        ({"window": 1}, "window=1"),
        ({"trained_windows": (3,)}, "expected one for each of 2 stages"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
    ],
)
def test_mistakes_get_a_message(options, says):
    with pytest.raises(UserError, match=says):
        Swin(3, 8, **{"depths": (2, 2), "num_heads": (2, 2), **options})
