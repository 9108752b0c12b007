"""Heads, losses and sliding windows of dense prediction against formulas in torch and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import torch
from vit_jax.data.source import Image, PixelNumbers, Segments
from vit_jax.layers.bilinear import bilinear
from vit_jax.models.dense_heads import Linear, MaskTransformer
from vit_jax.models.vit import ViT
from vit_jax.tasks.dense import starts
from vit_jax.tasks.depth import Depth
from vit_jax.tasks.segment import Segment, dice, pixel_xent
from vit_jax.types import UserError

F = torch.nn.functional
RNG = np.random.default_rng(0)
VIT = ViT(num_classes=0, width=8, depth=2, mlp_dim=8, num_heads=2, patch_size=4, pool="gap", posemb="none")
FIELDS = {"image": Image(), "segments": Segments(("a", "b", "c"))}
SPEC = {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def perturbed(variables):
    return jax.tree.map(lambda x: x + 0.3 * normal(*x.shape), variables)


def test_the_mask_transformer_is_segmenters_formula(agrees):
    """Section 3.2: M = softmax-free products of normalised patches and classes after joint blocks, each written out in torch."""
    head, maps = MaskTransformer(num_classes=5, depth=1, num_heads=2), [jnp.asarray(normal(2, 3, 4, 8))]
    params = perturbed(jax.jit(head.init)(jax.random.key(0), maps)["params"])
    found = jax.jit(head.apply)({"params": params}, maps)
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), params)

    def dense(x, name, part=p):
        y = torch.tensordot(x, part[name]["kernel"], 1)
        return y + part[name]["bias"] if "bias" in part[name] else y

    def layer_norm(x, name, part=p):
        return F.layer_norm(x, x.shape[-1:], part[name]["scale"], part[name]["bias"], 1e-5)

    x = dense(torch.tensor(np.asarray(maps[0])).reshape(2, 12, 8), "embed")
    x = torch.cat([x, p["classes"].expand(2, -1, -1)], dim=1)
    block = p["block_0"]
    y = layer_norm(x, "norm1", block)
    q, k, v = (dense(y, name, block["attn"]).transpose(1, 2) for name in ("query", "key", "value"))
    mixed = (torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1) @ v).transpose(1, 2)
    x = x + torch.tensordot(mixed, block["attn"]["out"]["kernel"], 2) + block["attn"]["out"]["bias"]
    x = x + dense(F.gelu(dense(layer_norm(x, "norm2", block), "up", block["mlp"])), "down", block["mlp"])
    x = layer_norm(x, "norm")
    patches, classes = dense(x[:, :12], "patch_projection"), dense(x[:, 12:], "class_projection")
    masks = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).transpose(1, 2)
    expected = layer_norm(masks, "mask_norm").reshape(2, 3, 4, 5)
    agrees("Segmenter: mask transformer", "torch formula", found, expected, 1e-4)


def test_the_linear_head_is_batch_norm_and_a_linear_layer(agrees):
    head, maps = Linear(num_classes=3), [jnp.asarray(normal(2, 4, 4, 6)), jnp.asarray(normal(2, 2, 2, 5))]
    variables = perturbed(jax.jit(head.init)(jax.random.key(0), maps))
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    x = torch.tensor(np.concatenate([maps[0], bilinear(maps[1], (4, 4))], axis=-1)).permute(0, 3, 1, 2)
    norm, stats = variables["params"]["norm"], variables["batch_stats"]["norm"]
    mean, var = (torch.tensor(np.asarray(stats[key])) for key in ("mean", "var"))
    weight, bias = (torch.tensor(np.asarray(norm[key])) for key in ("scale", "bias"))
    out = variables["params"]["out"]
    for train in (False, True):
        running = mean.clone(), var.clone()
        y = F.batch_norm(x, *running, weight, bias, training=train, momentum=0.1, eps=1e-5)
        expected = torch.tensordot(y.permute(0, 2, 3, 1), torch.tensor(np.asarray(out["kernel"])), 1)
        forward = jax.jit(lambda v, train=train: head.apply(v, maps, train=train, mutable=["batch_stats"]))
        found, updated = forward(variables)
        agrees("linear head", "torch", found, expected + torch.tensor(np.asarray(out["bias"])), 1e-5)
        agrees("linear head: running mean", "torch", updated["batch_stats"]["norm"]["mean"], running[0], 1e-5)


def labels_of(shape, classes):
    labels = RNG.integers(0, classes, shape).astype(np.uint8)
    return np.where(RNG.random(shape) < 0.2, 255, labels).astype(np.uint8)


def task(**options):
    return Segment(VIT, fields=FIELDS, spec=SPEC, **options)


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0)])
def test_the_cross_entropy_is_that_of_torch_with_ignored_pixels_and_weights(weights, agrees):
    logits, labels = normal(2, 5, 6, 3), labels_of((2, 5, 6), 3)
    labels[1] = 255
    found, _ = task(class_weights=weights).losses(jnp.asarray(logits), jnp.asarray(labels))
    options = {"ignore_index": 255, "weight": None if weights is None else torch.tensor(weights)}
    expected = F.cross_entropy(torch.tensor(logits[:1]).permute(0, 3, 1, 2), torch.tensor(labels[:1]).long(), **options)
    agrees("cross-entropy of pixels", "torch", found[0], expected, 1e-5)
    assert float(found[1]) == 0.0  # without a labelled pixel


def test_dice_is_its_formula_in_numpy(agrees):
    logits, labels = normal(2, 5, 6, 3), labels_of((2, 5, 6), 3)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = []
    for p, g in zip(probs, labels, strict=True):
        known = g != 255
        scores = [
            (2 * p[known, c][g[known] == c].sum() + 1e-5) / (p[known, c].sum() + (g == c).sum() + 1e-5)
            for c in range(3)
        ]
        expected.append(1 - np.mean(scores))
    agrees("Dice", "numpy formula", dice(jnp.asarray(logits), jnp.asarray(labels)), expected, 1e-6)


def test_ignored_pixels_have_no_gradient():
    logits, labels = jnp.asarray(normal(1, 4, 4, 3)), jnp.full((1, 4, 4), 255, jnp.uint8).at[0, 0, 0].set(1)
    for loss in (lambda x: pixel_xent(x, labels).sum(), lambda x: dice(x, labels).sum()):
        grads = np.asarray(jax.jit(jax.grad(loss))(logits))
        assert grads[0, 0, 0].any()
        assert not grads[0, 1:].any()


@pytest.mark.parametrize(("size", "window", "stride", "expected"), [
    (512, 512, 341, [0]), (683, 512, 341, [0, 171]), (1024, 512, 341, [0, 341, 512]), (300, 512, 341, [0]), (1025, 512, 512, [0, 512, 513]),
])  # fmt: skip
def test_windows_cover_a_side_and_end_with_it(size, window, stride, expected):
    assert starts(size, window, stride) == expected


def weights_of(one):
    params = perturbed(jax.jit(lambda: one.init(jax.random.key(0), SPEC))())
    return {"params": params, **one.init_state(params)}


def test_windows_that_overlap_are_averaged():
    one = task(window=8, stride=5)
    weights, image = weights_of(one), RNG.integers(0, 256, (2, 15, 11, 3), np.uint8)
    outputs = jax.jit(one.pixel_outputs)
    found = np.asarray(outputs(weights, {"image": jnp.asarray(image)}))
    total, counts = np.zeros((2, 15, 11, 3)), np.zeros((1, 15, 11, 1))
    for y in (0, 5, 7):
        for x in (0, 3):
            window = {"image": jnp.asarray(image[:, y : y + 8, x : x + 8])}
            total[:, y : y + 8, x : x + 8] += np.asarray(outputs(weights, window))
            counts[:, y : y + 8, x : x + 8] += 1
    np.testing.assert_allclose(found, total / counts, atol=1e-5)


def test_several_scales_and_mirror_images_are_averaged_as_probabilities():
    one = task(scales=(1.0, 1.5), stride=4)
    weights, image = weights_of(one), jnp.asarray(RNG.integers(0, 256, (1, 8, 8, 3), np.uint8))
    found = jax.jit(one.multi_scale)(weights, {"image": image})
    expected = 0.0
    for scale in (8, 12):
        for turn in (1, -1):
            resized = bilinear(one.normalize(image), (scale, scale))[:, :, ::turn]
            out = jax.jit(lambda x: bilinear(one._in_windows(weights, x), (8, 8)))(resized)
            expected = expected + jax.nn.softmax(out[:, :, ::turn]) / 4
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-5)


def test_depth_has_the_scale_invariant_loss_of_its_formula():
    one = Depth(VIT, fields={"image": Image(), "numbers": PixelNumbers()}, spec=SPEC)
    outputs, truth = normal(2, 3, 4, 1), np.exp(normal(2, 3, 4))
    truth[0, 0] = np.nan
    truth[1, 2, 2] = 0.0
    found, _ = one.losses(jnp.asarray(outputs), jnp.asarray(truth))
    for i in range(2):
        known = np.isfinite(truth[i]) & (np.nan_to_num(truth[i]) > 0)
        d = outputs[i, ..., 0][known] - np.log(truth[i][known])
        assert float(found[i]) == pytest.approx(np.mean(d**2) - 0.5 * np.mean(d) ** 2, rel=1e-5)
    grads = jax.grad(lambda x: one.losses(x, jnp.asarray(truth))[0].sum())(jnp.asarray(outputs))
    assert np.isfinite(grads).all()
    with pytest.raises(UserError, match=r"give task\.log=True"):
        Depth(VIT, fields={"numbers": PixelNumbers()}, log=False)
