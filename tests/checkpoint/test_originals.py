"""Files in the names of the original repositories: the same networks as from timm, which converts them too."""

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

from tests.checkpoint.test_timm import TINY, perturbed
from tests.peers import torch
from vit_jax.pretrained import reference
from vit_jax.pretrained import timm as theirs

SIZES = TINY | {"img_size": 64, "depth": 2, "num_classes": 0}


def arrays_of(model):
    return safetensors.numpy.load(safetensors.torch.save(model.state_dict()))


def dinov2(arrays, registers):
    """DINOv2's hub file of a giant: SwiGLU is w12 and w3, the class token has a position, registers have none."""
    names = {"fc1.": "w12.", "fc2.": "w3."}
    found = {}
    for name, array in arrays.items():
        for new, old in names.items():
            name = name.replace(f"mlp.{new}", f"mlp.{old}")
        found[name.replace("reg_token", "register_tokens")] = array
    if registers:
        first = np.full((1, 1, 96), 0.25, np.float32)
        found["cls_token"] = found["cls_token"] - first
        found["pos_embed"] = np.concatenate([first, found["pos_embed"]], axis=1)
    return found | {"mask_token": np.ones((1, 96), np.float32)}


def dinov3(arrays):
    """DINOv3's hub file: one bias of queries, keys and values, with a mask of the keys'."""
    found = {}
    for name, array in arrays.items():
        if name.endswith("q_bias"):
            value = arrays[name.replace("q_bias", "v_bias")]
            bias = np.concatenate([array, np.ones_like(array), value])
            found[name.replace("q_bias", "qkv.bias")] = bias
            found[name.replace("q_bias", "qkv.bias_mask")] = np.repeat([1.0, 0.0, 1.0], len(array)).astype(np.float32)
        elif not name.endswith("v_bias"):
            for new, old in (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens")):
                name = name.replace(new, old)
            for new, old in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
                name = name.replace(f"mlp.{new}.", f"mlp.{old}.")
            found[name] = array
    return found | {"mask_token": np.ones((1, 96), np.float32), "rope_embed.periods": np.ones(8, np.float32)}


def beit(arrays):
    index = {n.replace("bias_table", "index"): np.zeros((17, 17), np.int64) for n in arrays if "bias_table" in n}
    return arrays | index | {"lm_head.weight": np.ones((9, 96), np.float32)}


def mae(arrays):
    return arrays | {
        "mask_token": np.ones((1, 1, 32), np.float32),
        "decoder_embed.weight": np.ones((32, 96), np.float32),
    }


def dino(arrays):
    """A whole checkpoint: the teacher is the better network."""
    backbone = {f"backbone.{name}": array for name, array in arrays.items()}
    student = {f"module.{name}": 0 * array for name, array in backbone.items()}
    head = {"head.mlp.0.weight": np.ones((4, 96), np.float32), "head.last_layer.weight_v": np.ones((8, 4), np.float32)}
    return {"student": student, "teacher": backbone | head, "epoch": 100}


def ijepa(arrays):
    target = {f"module.{name}": array for name, array in arrays.items()}
    return {
        "encoder": {name: 0 * x for name, x in target.items()},
        "predictor": {"module.mask_token": np.ones((1, 1, 8))},
        "target_encoder": target,
    }


FILES = {
    "DINO": ("vit_small_patch16_224", {}, dino),
    "MAE": ("vit_base_patch16_224", {}, mae),
    "I-JEPA": ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}, ijepa),
    "DINOv2": ("vit_giant_patch14_dinov2", {"patch_size": 16}, lambda a: dinov2(a, registers=False)),
    "DINOv2 with registers": ("vit_giant_patch14_reg4_dinov2", {"patch_size": 16}, lambda a: dinov2(a, registers=True)),
    "DINOv3": ("vit_small_plus_patch16_dinov3_qkvb", {}, dinov3),
    "BEiT": ("beit_base_patch16_224", {}, lambda a: {"model": beit(a)}),
}


def as_torch(tree):
    if isinstance(tree, dict):
        return {name: as_torch(x) for name, x in tree.items()}
    return torch.from_numpy(np.array(tree)) if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize("name", FILES)
def test_an_original_file_is_the_network_that_timm_has(name, tmp_path):
    architecture, fields, original = FILES[name]
    arrays = arrays_of(perturbed(architecture, **SIZES | fields))
    expected = theirs.read(arrays, {"architecture": architecture}, "it")
    torch.save(as_torch(original(arrays)), tmp_path / "original.pth")
    found = reference.read(str(tmp_path / "original.pth"))
    trained_alone = {"mask_token"} & found.params.keys()
    assert found.params.keys() - trained_alone == expected.params.keys()
    for key, leaf in expected.params.items():
        np.testing.assert_allclose(found.params[key], leaf, rtol=0, atol=1e-6, err_msg=key)
    computed = (
        "num_heads",
        "mlp",
        "norm_eps",
        "rope",
        "relative_bias",
        "qkv_bias",
        "posemb_prefix",
        "registers",
        "class_token",
    )
    assert {k: found.model[k] for k in computed if k in found.model} == {
        k: expected.model[k] for k in computed if k in expected.model
    }


def test_what_pretraining_has_beside_the_network_is_left_out_and_named(tmp_path):
    arrays = arrays_of(perturbed("vit_base_patch16_224", **SIZES))
    torch.save(as_torch({"model": mae(arrays)}), tmp_path / "mae.pth")
    found = reference.read(str(tmp_path / "mae.pth"))
    assert "Not loaded: decoder_embed (1 arrays), mask_token (1 arrays)." in found.notes
    assert "mask_token" not in found.params
