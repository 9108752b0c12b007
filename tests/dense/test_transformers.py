"""UPerNet over Swin and YOLOS against transformers, both directions, from perturbed random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import torch, transformers
from vit_jax import inference
from vit_jax.cli import convert
from vit_jax.layers.bilinear import adaptive_mean, bilinear, bilinear_of_parts
from vit_jax.types import UserError

RNG = np.random.default_rng(0)


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running_" in name:
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model.eval()


def upernet():
    swin = transformers.SwinConfig(
        image_size=96, embed_dim=24, depths=[1, 2, 1], num_heads=[2, 4, 8], window_size=4,
        out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    names = {0: "sky", 1: "road", 2: "car", 3: "tree", 4: "sign"}
    config = transformers.UperNetConfig(
        backbone_config=swin,
        hidden_size=16,
        num_labels=5,
        id2label=names,
        auxiliary_in_channels=96,
        pool_scales=[1, 2, 3, 6],
    )
    return perturbed(transformers.UperNetForSemanticSegmentation(config))


def yolos(between=True):
    names = {0: "cat", 1: "dog", 2: "N/A", 3: "N/A"}
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=[32 if between else 36, 48], patch_size=8,
        num_detection_tokens=7, use_mid_position_embeddings=between, id2label=names, num_labels=4,
    )  # fmt: skip
    return perturbed(transformers.YolosForObjectDetection(config))


def theirs_on(model, loaded, images):
    pixels = (images / 255 - np.asarray(loaded.task.mean)) / np.asarray(loaded.task.std)
    with torch.no_grad():
        return model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))


def images_for(loaded):
    return RNG.integers(0, 256, (2, *loaded.image_shape), np.uint8)


def test_upernet_over_swin_is_that_of_transformers_both_ways(tmp_path, capsys, agrees):
    model = upernet()
    model.save_pretrained(tmp_path / "theirs")
    loaded = inference.load(tmp_path / "theirs")
    assert loaded.class_names == ("sky", "road", "car", "tree", "sign")
    images = images_for(loaded)
    found = convert.outputs_of(loaded, images, ("pixel_outputs",))
    expected = theirs_on(model, loaded, images).logits.numpy().transpose(0, 2, 3, 1)
    agrees("UPerNet over Swin: logits of pixels", "transformers", found, expected, 1e-4)
    for to in ("hf", "workdir"):
        assert convert.main([f"--model={tmp_path / 'theirs'}", f"--to={to}", f"--out={tmp_path / to}"]) == 0
    assert "OK: transformers gives the same pixel_outputs" in capsys.readouterr().out
    again = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path / "hf").eval()
    agrees("UPerNet over Swin: written", "transformers", theirs_on(again, loaded, images).logits, theirs_on(model, loaded, images).logits, 1e-4)  # fmt: skip
    other = convert.outputs_of(inference.load(tmp_path / "workdir"), images, ("pixel_outputs",))
    np.testing.assert_array_equal(other, found)


@pytest.mark.parametrize("between", [True, False])
def test_yolos_is_that_of_transformers_both_ways(between, tmp_path, capsys, agrees):
    model = yolos(between)
    model.save_pretrained(tmp_path / "theirs")
    loaded = inference.load(tmp_path / "theirs")
    assert loaded.class_names == ("cat", "dog", "N/A 2", "N/A 3")
    assert loaded.image_shape == (32, 48, 3)
    images = images_for(loaded)
    found = convert.outputs_of(loaded, images, ("box_logits", "box_outputs"))
    expected = theirs_on(model, loaded, images)
    agrees("YOLOS: logits of tokens", "transformers", found[..., :-4], expected.logits, 1e-4)
    agrees("YOLOS: boxes", "transformers", found[..., -4:], expected.pred_boxes, 1e-4)
    assert convert.main([f"--model={tmp_path / 'theirs'}", "--to=hf", f"--out={tmp_path / 'ours'}"]) == 0
    assert "OK: transformers gives the same box_logits and box_outputs" in capsys.readouterr().out


def test_other_backbones_of_upernet_are_refused(tmp_path):
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False)
    transformers.UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="UPerNet over 'convnext'; expected a Swin"):
        inference.load(tmp_path / "theirs")


@pytest.mark.parametrize(("size", "new"), [((5, 7), (13, 9)), ((8, 8), (4, 3)), ((3, 4), (3, 11))])
def test_bilinear_maps_and_adaptive_means_are_those_of_torch(size, new, agrees):
    x = RNG.normal(size=(2, *size, 3)).astype(np.float32)
    chw = torch.tensor(x).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(chw, size=new, mode="bilinear", align_corners=False)
    agrees("bilinear", "torch", bilinear(jnp.asarray(x), new), expected.permute(0, 2, 3, 1), 1e-5)
    pooled = torch.nn.functional.adaptive_avg_pool2d(chw, 3)
    agrees("adaptive means", "torch", adaptive_mean(jnp.asarray(x), 3), pooled.permute(0, 2, 3, 1), 1e-5)
    part, canvas = np.array([[2, 3], [3, 4]]), (16, 17)
    sizes = np.array([new, (6, 5)])
    found = np.asarray(bilinear_of_parts(jnp.asarray(x), jnp.asarray(part), jnp.asarray(sizes), canvas))
    for i in range(2):
        inside = chw[i : i + 1, :, : part[i, 0], : part[i, 1]]
        expected = torch.nn.functional.interpolate(inside, size=tuple(sizes[i].tolist()), mode="bilinear")
        agrees(
            "bilinear of a part", "torch", found[i, : sizes[i, 0], : sizes[i, 1]], expected[0].permute(1, 2, 0), 1e-5
        )


def targets(seed):
    """True boxes of two images, the second without any, in torch's form and in ours."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((3, 5, 4), np.float32)
    labels = np.full((3, 5), -1, np.int32)
    for i, count in enumerate((4, 0, 2)):
        centre, side = rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(0.05, 0.5, (count, 2))
        boxes[i, :count], labels[i, :count] = np.concatenate([centre, side], axis=1), rng.integers(0, 4, count)
    theirs = [
        {
            "class_labels": torch.tensor(labels[i][labels[i] >= 0]).long(),
            "boxes": torch.tensor(boxes[i][labels[i] >= 0]),
        }
        for i in range(3)
    ]
    return boxes, labels, theirs


@pytest.mark.parametrize("seed", [0, 1])
def test_matches_loss_and_gradients_are_those_of_yolos_with_labels(seed, tmp_path, agrees):
    model = yolos()
    model.save_pretrained(tmp_path)
    loaded = inference.load(tmp_path)
    task, images = loaded.task, RNG.integers(0, 256, (3, *loaded.image_shape), np.uint8)
    boxes, labels, theirs = targets(seed)
    pixels = (images / 255 - np.asarray(task.mean)) / np.asarray(task.std)
    out = model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32), labels=theirs)
    model.zero_grad()
    out.loss.backward()

    size = np.array([loaded.image_shape[1], loaded.image_shape[0]] * 2, np.float32)
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    batch = {"image": jnp.asarray(images), "boxes": jnp.asarray(np.concatenate([low, high], axis=-1) * size),
             "box_labels": jnp.asarray(labels)}  # fmt: skip
    prepared = task.prepare(batch, jax.random.key(0), {})

    def loss(params):
        return task.loss(params, {}, prepared, jax.random.key(0))

    (value, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(loaded.weights["params"])
    agrees("YOLOS: loss", "transformers", value, out.loss.detach(), 1e-5)
    for ours, name in (("class_loss", "loss_ce"), ("box_loss", "loss_bbox"), ("giou_loss", "loss_giou")):
        agrees("YOLOS: parts of the loss", "transformers", aux.metrics[ours], out.loss_dict[name].detach(), 1e-5)
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    expected = HungarianMatcher(1, 5, 2)({"logits": out.logits, "pred_boxes": out.pred_boxes}, theirs)
    for i, (tokens, rows) in enumerate(expected):
        found = task.match(jnp.asarray(out.logits[i].detach().numpy()), jnp.asarray(out.pred_boxes[i].detach().numpy()),
                           jnp.asarray(boxes[i]), jnp.asarray(labels[i]))  # fmt: skip
        assert dict(zip(rows.tolist(), tokens.tolist(), strict=True)) == dict(
            enumerate(np.asarray(found)[labels[i] >= 0].tolist())
        )
    for ours, theirs_ in (("class_head/out/kernel", "class_labels_classifier.layers.2.weight"),
                          ("box_head/dense_0/kernel", "bbox_predictor.layers.0.weight"),
                          ("backbone/encoder/block_0/mlp/up/kernel", "vit.layers.0.mlp.fc1.weight")):  # fmt: skip
        named = dict(model.named_parameters())
        theirs_ = theirs_ if theirs_ in named else "vit.encoder.layer.0.intermediate.dense.weight"
        found = grads
        for part in ours.split("/"):
            found = found[part]
        agrees("YOLOS: gradients", "transformers", found, named[theirs_].grad.T, 1e-5)
    agrees("YOLOS: gradients", "transformers", grads["tokens"], dict(model.named_parameters())["vit.embeddings.detection_tokens"].grad, 1e-5)  # fmt: skip
