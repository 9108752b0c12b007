"""timm's NaFlexVit: the same logits from the same weights, where its positions are resized too."""

import jax
import numpy as np
import pytest

from tests.checkpoint.test_timm_read import unnamed
from tests.conftest import crossed
from tests.peers import timm, torch
from vit_jax import trees
from vit_jax.config import factory
from vit_jax.pretrained import timm as theirs
from vit_jax.types import UserError

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5, "pos_embed_grid_size": (4, 4)}
ARGS = {"num_heads": 2}
NAMES = [name for name in timm.list_models("naflexvit_*") if "radio" not in name]


def perturbed(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.2 * torch.randn_like(x))
    return model


def config_of(name, size):
    return {"architecture": name, "model_args": ARGS, "pretrained_cfg": {"input_size": [3, *size]}}


@pytest.mark.parametrize(("name", "size"), crossed(NAMES, [(64, 64), (96, 96), (48, 80)]))
def test_logits_are_those_of_timm(name, size, agrees):
    model = perturbed(name)
    arrays = {key: x.numpy() for key, x in model.state_dict().items()}
    found = theirs.read(arrays, config_of(name, size), name)
    assert found.preprocessing.size == size
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    network = factory.build(found.model, "model")
    ours = jax.jit(network.apply)({"params": trees.nest(found.params)}, images)
    agrees(f"NaFlexVit {name}", "timm", ours, expected, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_is_read_as_timm_builds_it(name):
    model, arrays = unnamed(name)
    found = theirs.read(arrays, {"architecture": name, "pretrained_cfg": {"input_size": [3, 384, 384]}}, name)
    block = model.blocks[0]
    expected = {
        "num_heads": block.attn.num_heads,
        "mlp": {"GELU": "gelu", "GELUTanh": "gelu_tanh"}[type(block.mlp.act).__name__],
        "norm_eps": block.norm1.eps,
        "pool": {"avg": "gap", "map": "map"}[model.global_pool],
        "registers": model.num_reg_tokens,
        "layer_scale": 1e-5 if hasattr(block.ls1, "gamma") else None,
    }
    assert {key: found.model[key] for key in expected} == expected
    assert found.model.get("posemb_grid") == ((16, 16) if "siglip" in name else None)
    assert found.preprocessing.size == (384, 384)


@pytest.mark.parametrize("size", [[3, 8, 8], [3, 10**6, 10**6]])
def test_impossible_image_sizes_are_refused(size):
    arrays = unnamed(NAMES[0])[1]
    with pytest.raises(UserError, match="correct input_size"):
        theirs.read(arrays, {"architecture": NAMES[0], "pretrained_cfg": {"input_size": size}}, "x")


def test_c_radio_is_refused_by_name():
    name = "naflexvit_base_patch16_radio_v3"
    with pytest.raises(UserError, match="C-RADIO"):
        theirs.read(unnamed(name)[1], {"architecture": name}, name)
