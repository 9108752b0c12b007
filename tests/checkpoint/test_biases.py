"""Tables of relative position biases moved to other grids and windows."""

import jax
import numpy as np
import pytest
from scipy.interpolate import make_interp_spline

from tests.models.helpers import init
from tests.peers import torch
from vit_jax import trees
from vit_jax.checkpoint.transfer import biases
from vit_jax.checkpoint.transfer.merge import merge
from vit_jax.config.factory import build
from vit_jax.layers.geometry import num_distances

RNG = np.random.default_rng(0)


def beit_places(old, new):
    """Where BEiT's run_class_finetuning.py puts the offsets: steps of q, q^2, ... with q by bisection."""
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        if sum(q**i for i in range(old // 2)) > new // 2:
            right = q
        else:
            left = q
    distances = [sum(q**j for j in range(i + 1)) for i in range(old // 2)]
    return np.array([-d for d in reversed(distances)] + [0.0] + distances)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((4, 4), (7, 5)), ((5, 4), (8, 9)), ((6, 6), (4, 4))])
def test_biases_of_beit_follow_a_spline_over_geometric_distances(old, new):
    table = RNG.normal(size=(num_distances(old), 3)).astype(np.float32)
    found = biases.resize_relative_bias(table, old, new)
    values = table[:-3].reshape(2 * old[0] - 1, 2 * old[1] - 1, 3).astype(np.float64)
    for axis in (0, 1):
        places = beit_places(2 * old[axis] - 1, 2 * new[axis] - 1)
        wanted = np.clip(np.arange(2 * new[axis] - 1) - new[axis] + 1, places[0], places[-1])
        values = make_interp_spline(places, values, axis=axis)(wanted)
    np.testing.assert_allclose(found[:-3], values.reshape(-1, 3), atol=1e-5)
    np.testing.assert_array_equal(found[-3:], table[-3:])


@pytest.mark.parametrize(("old", "new"), [(7, 12), (8, 16), (12, 7)])
def test_biases_of_swin_are_resized_as_by_the_original(old, new):
    table = RNG.normal(size=((2 * old - 1) ** 2, 4)).astype(np.float32)
    grid = torch.from_numpy(table.T.astype(np.float64).reshape(1, 4, 2 * old - 1, 2 * old - 1))
    expected = torch.nn.functional.interpolate(grid, (2 * new - 1, 2 * new - 1), mode="bicubic").numpy()[0]
    np.testing.assert_allclose(
        biases.resize_offset_bias(table, 2 * new - 1), expected.reshape(4, -1).T, rtol=0, atol=1e-5
    )


BEIT = {
    "type": "vit.ViT", "num_classes": 3, "width": 8, "depth": 2, "mlp_dim": 8, "num_heads": 2, "patch_size": 4, "posemb": "none",
    "relative_bias": "blocks", "head": {"type": "linear"},
}  # fmt: skip
SWIN = {"type": "swin.Swin", "num_classes": 3, "width": 8, "depths": (2, 2), "num_heads": (2, 2), "patch_size": 2}


@pytest.mark.parametrize(
    ("old", "new", "pixels", "name"),
    [
        (BEIT, BEIT, 24, "encoder/block_1/attn/relative_bias"),
        (SWIN | {"window": 3}, SWIN | {"window": 4}, 24, "stage_1/block_0/attn/offset_bias"),
    ],
    ids=["beit", "swin"],
)
def test_a_model_begins_from_one_of_another_grid_or_window(old, new, pixels, name):
    def leaves(spec, pixels):
        network = build(dict(spec), "model")
        params = init(network, jax.ShapeDtypeStruct((1, pixels, pixels, 3), "float32"))
        return network, {key: np.asarray(leaf) for key, leaf in trees.flatten(params).items()}

    (source, pretrained), (network, like) = leaves(old, 16), leaves(new, pixels)
    merged = merge(
        source=pretrained, source_model=old, source_classes=None, source_grid=source.grid((16, 16)), model=new, like=like,
        fresh=lambda name: np.zeros(like[name].shape), classes=None, grid=network.grid((pixels, pixels)), head="reset",
    )  # fmt: skip
    assert next(entry.status for entry in merged.report if entry.name == name) == "resized"
    assert merged.params[name].shape == like[name].shape
