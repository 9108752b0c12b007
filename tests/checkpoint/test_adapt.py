import numpy as np
import pytest
import scipy.ndimage

from tests.peers import timm, torch, transformers
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


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "bicubic_no_antialias", "half_pixel"])
def test_the_same_size_is_the_same(method):
    np.testing.assert_array_equal(resize_matrix(7, 7, method), np.eye(7))


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(UserError, match=r"17 position embeddings; expected 0 and 4 x 4"):
        resize_posemb(normal(1, 17, 8), (4, 4), (8, 8), 0, "bilinear")


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("old", "new"),
    [((14, 14), (24, 24)), ((14, 14), (10, 20)), ((24, 24), (14, 14)), ((7, 12), (12, 5)), ((1, 2), (3, 7))],
)
def test_bicubic_position_embeddings_without_antialiasing_are_those_of_deit_and_transformers(old, new, prefix):
    """Both call torch.nn.functional.interpolate(mode="bicubic", align_corners=False): deit/main.py, modeling_vit.py."""
    table = normal(1, prefix + old[0] * old[1], 8)
    grid = torch.from_numpy(table[:, prefix:].astype(np.float64).reshape(1, *old, 8)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, new, mode="bicubic", align_corners=False)
    resized = resize_posemb(table, old, new, prefix, "bicubic_no_antialias")
    np.testing.assert_allclose(resized[:, prefix:], expected.flatten(2).permute(0, 2, 1), atol=1e-6)
    np.testing.assert_array_equal(resized[:, :prefix], table[:, :prefix])


def test_a_vit_of_transformers_reads_larger_images_alike():
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=4
    )
    embeddings = transformers.models.vit.modeling_vit.ViTEmbeddings(config)
    table = normal(1, 17, 8)
    embeddings.position_embeddings.data = torch.from_numpy(table)
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 6 * 9, 8), 24, 36).detach()
    np.testing.assert_allclose(resize_posemb(table, (4, 4), (6, 9), 1, "bicubic_no_antialias"), expected, atol=1e-5)


@pytest.mark.parametrize("new", [(32, 32), (8, 8), (14, 12), (20, 16)])
def test_patch_embeddings_are_those_of_timm(new):
    """The pseudo-inverse of timm is float32, by the LAPACK at hand; ours is float64. Seen 1.3e-5 apart."""
    kernel = normal(16, 16, 3, 4)
    expected = timm.layers.resample_patch_embed(torch.from_numpy(kernel.transpose(3, 2, 0, 1)), list(new))
    resized = resize_patch_embed(kernel, new, "bicubic")
    np.testing.assert_allclose(resized.transpose(3, 2, 0, 1), expected, rtol=1e-5, atol=1e-4)


def embed(patch: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("...ijk,ijkd->...d", patch, kernel)


# The cases of big_vision's models/proj/flexi/vit_test.py: squares that grow, rectangles, and numbers of channels.
SQUARES = [48, 40, 30, 24, 20, 16, 15, 12, 10, 8, 6, 5]
ENLARGED = [((s, s), (t, t), 3) for s in SQUARES for t in SQUARES if s <= t]
ENLARGED += [((8, 10), (10, 12), 3), ((8, 6), (9, 15), 3), ((8, 6), (15, 9), 3)]
ENLARGED += [((8, 10), (10, 12), channels) for channels in (1, 3, 10)]


def test_a_patch_enlarged_as_by_tensorflow_is_embedded_as_the_small_one_was():
    """torch's bilinear resize without antialiasing is tf.image.resize's default."""
    for old, new, channels in ENLARGED:
        kernel, patches = normal(*old, channels, 4), normal(5, *old, channels)
        images = torch.from_numpy(patches.astype(np.float64)).permute(0, 3, 1, 2)
        enlarged = torch.nn.functional.interpolate(images, new, mode="bilinear", align_corners=False).permute(
            0, 2, 3, 1
        )
        found = embed(enlarged.numpy(), resize_patch_embed(kernel, new))
        np.testing.assert_allclose(found, embed(patches, kernel), rtol=1e-3, atol=1e-3, err_msg=f"{old} to {new}")


@pytest.mark.parametrize("side", [4, 5, 6, 7])
def test_shrunk_patch_embeddings_are_the_pseudo_inverse_of_tensorflows_resize(side):
    kernel = normal(8, 8, 3, 5)
    basis = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    resize = torch.nn.functional.interpolate(basis, (side, side), mode="bilinear", align_corners=False).reshape(64, -1)
    expected = np.einsum("pq,qcd->pcd", np.linalg.pinv(resize.numpy()), kernel.reshape(64, 3, 5))
    np.testing.assert_allclose(resize_patch_embed(kernel, (side, side)).reshape(-1, 3, 5), expected, atol=1e-5)


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
