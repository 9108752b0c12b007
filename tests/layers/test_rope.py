"""Rotary positions, against timm's and transformers' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import timm, torch, transformers
from vit_jax.layers.geometry import rows_and_columns
from vit_jax.layers.rope import Axial, Mixed, rotate
from vit_jax.types import UserError

GRID = (3, 5)
HEADS, WIDTH = 2, 8
QUERIES = np.random.default_rng(0).standard_normal((2, 15, HEADS, WIDTH)).astype(np.float32)


def ours(rope, params=None, kept=None):
    """QUERIES of patches, rotated."""
    coords = rope.coords(rows_and_columns(GRID, kept), GRID, None)
    angles = rope.apply({"params": params or {}}, coords, HEADS, WIDTH)
    queries = QUERIES if kept is None else np.take_along_axis(QUERIES, np.asarray(kept)[:, :, None, None], 1)
    return np.asarray(rotate(jnp.asarray(queries), angles, rope.pairs))


def theirs(embedding, half):
    """The same by timm from its concatenated sines and cosines."""
    queries = torch.from_numpy(QUERIES).transpose(1, 2)
    return timm.layers.apply_rot_embed_cat(queries, embedding, half=half).transpose(1, 2).detach().numpy()


def test_axial_positions_equal_dinov3s():
    config = transformers.DINOv3ViTConfig(
        hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, patch_size=4, image_size=12
    )
    module = transformers.models.dinov3_vit.modeling_dinov3_vit
    rope = module.DINOv3ViTRopePositionEmbedding(config).eval()
    cos, sin = rope(torch.zeros(1, 3, 12, 20))
    queries = torch.from_numpy(QUERIES).transpose(1, 2)
    expected, _ = module.apply_rotary_pos_emb(queries, queries, cos, sin)
    np.testing.assert_allclose(ours(Axial()), expected.transpose(1, 2).numpy(), rtol=0, atol=1e-5)


def test_positions_by_index_equal_eva_02s_of_another_grid():
    rope = timm.layers.RotaryEmbeddingCat(
        WIDTH, in_pixels=False, feat_shape=GRID, ref_feat_shape=(16, 16), temperature=10000.0
    )
    expected = theirs(rope.get_embed(), half=False)
    found = ours(Axial(base=10000.0, coordinates="index", reference=16, pairs="neighbours"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_mixed_positions_equal_timms_with_the_same_frequencies():
    rope = timm.layers.RotaryEmbeddingMixed(HEADS * WIDTH, 1, HEADS, feat_shape=GRID)
    frequencies = jnp.asarray(rope.freqs.detach().numpy()[:, 0])
    expected = theirs(rope.get_embed()[0], half=False)
    np.testing.assert_allclose(ours(Mixed(), {"frequencies": frequencies}), expected, rtol=0, atol=1e-5)


def test_learned_frequencies_begin_as_axial_ones_turned_in_each_head():
    coords = jnp.ones((1, 2))
    (frequencies,) = Mixed().init(jax.random.key(0), coords, HEADS, WIDTH)["params"].values()
    sizes = np.linalg.norm(frequencies, axis=0)
    np.testing.assert_allclose(sizes, np.tile(10.0 ** -np.array([0, 0.5]), (HEADS, 2)), rtol=1e-5)
    assert not np.allclose(frequencies[:, 0], frequencies[:, 1])


@pytest.mark.parametrize("rope", [Axial(), Axial(coordinates="index", pairs="neighbours")], ids=str)
def test_a_subset_of_the_patches_keeps_its_angles(rope):
    kept = np.array([[3, 0, 14], [7, 8, 2]])
    whole = np.take_along_axis(ours(rope), kept[:, :, None, None], 1)
    np.testing.assert_allclose(ours(rope, kept=jnp.asarray(kept)), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("shift", 0.3), ("jitter", 1.5), ("rescale", 2.0)])
def test_augmented_coordinates_are_within_the_stated_range(name, value):
    rope, at = Axial(**{name: value}), rows_and_columns(GRID, None)
    plain = np.asarray(rope.coords(at, GRID, None))
    draws = np.stack([rope.coords(at, GRID, jax.random.key(i)) for i in range(200)])
    change = draws - plain if name == "shift" else draws[:, np.abs(plain).min(1) > 0] / plain[np.abs(plain).min(1) > 0]
    low, high = (-value, value) if name == "shift" else (1 / value, value)
    assert low <= change.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < change.max() <= high + 1e-5
    # One draw is for all patches, and of "rescale" for both axes.
    np.testing.assert_allclose(change, np.broadcast_to(change[:, :1], change.shape), rtol=1e-4, atol=1e-5)
    assert np.allclose(change[..., 0], change[..., 1], atol=1e-5) == (name == "rescale")


@pytest.mark.parametrize(
    "fields", [{"jitter": 0.5}, {"rescale": 0.0}, {"base": 0.0}, {"shift": -1.0}, {"reference": 16}], ids=str
)
def test_impossible_fields_are_refused_by_name(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        Axial(**fields)
