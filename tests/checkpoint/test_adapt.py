import numpy as np
import pytest
import scipy.ndimage

from tests.peers import timm, torch
from vit_jax.checkpoint.transfer.patches import adapt_channels, resize_matrix, resize_patch_embed, resize_posemb
from vit_jax.types import UserError

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((14, 14), (10, 20)), ((24, 24), (14, 14)), ((7, 12), (12, 5))]
)
def test_bicubic_position_embeddings_are_those_of_timm(old, new, prefix):
    table = normal(1, prefix + old[0] * old[1], 8)
    expected = timm.layers.resample_abs_pos_embed(
        torch.from_numpy(table), list(new), old_size=list(old), num_prefix_tokens=prefix
    )
    np.testing.assert_allclose(resize_posemb(table, old, new, prefix, "bicubic"), expected, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((2, 8), (4, 4)), ((3, 1), (1, 5))]
)
@pytest.mark.filterwarnings("ignore:.*divide by zero")
def test_bilinear_position_embeddings_are_those_of_scipy(old, new, prefix):
    table = normal(1, prefix + old[0] * old[1], 8)
    grid = table[0, prefix:].reshape(*old, 8)
    expected = scipy.ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1).reshape(1, -1, 8)
    resized = resize_posemb(table, old, new, prefix, "bilinear")
    np.testing.assert_allclose(resized[:, prefix:], expected, atol=1e-6)
    np.testing.assert_array_equal(resized[:, :prefix], table[:, :prefix])


@pytest.mark.parametrize(("old", "new"), [(24, 42), (26, 12), (15, 52)])
def test_bilinear_keeps_the_last_sample_where_scipy_rounds_it_away(old, new):
    x = normal(old)
    resized = resize_matrix(old, new, "bilinear") @ x
    assert scipy.ndimage.zoom(x, new / old, order=1)[-1] == 0.0
    np.testing.assert_allclose(resized, scipy.ndimage.zoom(x, new / old, order=1, mode="nearest"), atol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_the_same_size_is_the_same(method):
    np.testing.assert_array_equal(resize_matrix(7, 7, method), np.eye(7))


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(UserError, match=r"17 position embeddings; expected 0 and 4 x 4"):
        resize_posemb(normal(1, 17, 8), (4, 4), (8, 8), 0, "bilinear")


@pytest.mark.parametrize("new", [(32, 32), (8, 8), (14, 12), (20, 16)])
def test_patch_embeddings_are_those_of_timm(new):
    kernel = normal(16, 16, 3, 4)
    expected = timm.layers.resample_patch_embed(torch.from_numpy(kernel.transpose(3, 2, 0, 1)), list(new))
    np.testing.assert_allclose(resize_patch_embed(kernel, new).transpose(3, 2, 0, 1), expected, rtol=1e-5, atol=1e-5)


def embed(patch: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("ijk,ijkd->d", patch, kernel)


def test_an_enlarged_patch_is_embedded_as_the_small_one_was():
    kernel, patch = normal(8, 8, 3, 5), normal(8, 8, 3)
    rows, cols = resize_matrix(8, 16, "bicubic"), resize_matrix(8, 12, "bicubic")
    enlarged = np.einsum("ri,cj,ijk->rck", rows, cols, patch)
    embedded = embed(enlarged, resize_patch_embed(kernel, (16, 12)))
    np.testing.assert_allclose(embedded, embed(patch, kernel), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_channels_are_adapted_as_timm_does(channels):
    kernel = normal(4, 4, 3, 6)
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1))
    expected = timm.models.adapt_input_conv(channels, weight)
    np.testing.assert_allclose(adapt_channels(kernel, channels).transpose(3, 2, 0, 1), expected, atol=1e-6)


def test_grey_images_give_the_same_in_colour():
    kernel, grey = normal(4, 4, 1, 6), normal(4, 4, 1)
    colour = np.repeat(grey, 3, axis=2)
    in_colour = adapt_channels(kernel, 3)
    np.testing.assert_allclose(embed(colour, in_colour), embed(grey, kernel), atol=1e-5)
    np.testing.assert_allclose(embed(grey, adapt_channels(in_colour, 1)), embed(grey, kernel), atol=1e-5)


def test_a_kernel_of_four_channels_is_refused():
    with pytest.raises(UserError, match="for 4 channels"):
        adapt_channels(normal(4, 4, 4, 6), 3)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 9)), ((5, 5), (3, 4))])
def test_dinov2s_rule_is_pytorchs_bicubic_for_a_grid_that_is_a_tenth_larger(old, new):
    """As in interpolate_pos_encoding of the authors: scale_factor=(new + 0.1) / old, mode="bicubic"."""
    table = np.random.default_rng(0).standard_normal((1, 1 + old[0] * old[1], 3)).astype(np.float32)
    grid = torch.from_numpy(table[:, 1:].reshape(1, *old, 3)).permute(0, 3, 1, 2).double()
    factors = tuple((n + 0.1) / o for n, o in zip(new, old, strict=True))
    expected = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic").permute(0, 2, 3, 1)
    assert expected.shape[1:3] == new
    found = resize_posemb(table, old, new, 1, "dinov2")
    np.testing.assert_allclose(found[0, 1:], expected.reshape(-1, 3).numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[:, :1], table[:, :1])
