import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import torch
from vit_jax.config.factory import build
from vit_jax.models.conv_stem import ConvStem
from vit_jax.types import UserError


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_it_is_the_formula_in_torch(size):
    stem = ConvStem((4, 6, 8), (1, 2, 3))
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    params = jax.jit(stem.init)(jax.random.key(1), images)["params"]
    found = jax.jit(stem.apply)({"params": params}, images)

    functional, x = torch.nn.functional, torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    for i, stride in enumerate(stem.strides):
        kernel = torch.tensor(np.asarray(params[f"conv_{i}"]["kernel"])).permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, stride=stride, padding=1).permute(0, 2, 3, 1)
        x = functional.relu(functional.layer_norm(x, x.shape[-1:], eps=1e-6)).permute(0, 3, 1, 2)
    np.testing.assert_allclose(found, x.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    assert found.shape[1:3] == stem.grid(size)


def test_a_vit_reads_its_feature_map_in_patches_of_one():
    fields = {
        "width": 8,
        "depth": 1,
        "mlp_dim": 8,
        "num_heads": 2,
        "patch_size": 1,
        "num_classes": 3,
        "dtype": "bfloat16",
    }
    model = build(
        {"type": "vit.ViT", "stem": {"type": "conv_stem.ConvStem", "widths": [4, 6], "strides": [2, 2]}, **fields},
        "model",
    )
    images = jnp.zeros((2, 16, 8, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert model.grid((16, 8)) == (4, 2)
    assert params["embed"]["kernel"].shape == (1, 1, 6, 8)
    assert model.layer_of("stem/conv_0/kernel") == 0
    assert jax.eval_shape(model.apply, {"params": params}, images).shape == (2, 3)


@pytest.mark.parametrize(("widths", "strides"), [((), ()), ((4,), (1, 2)), ((0,), (1,)), ((4,), (0,))])
def test_widths_and_strides_that_make_no_stem_are_refused(widths, strides):
    with pytest.raises(UserError, match="as many of both"):
        ConvStem(widths, strides)
