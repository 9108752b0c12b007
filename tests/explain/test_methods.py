"""Maps of a network equal formulas written from the papers, in float64, on the same network in torch."""

import numpy as np
import pytest
import torch

from tests.explain.helpers import Traced, images, network
from vit_jax.config.factory import types_in
from vit_jax.explain.methods.attention import Attention
from vit_jax.explain.methods.components import Components
from vit_jax.explain.methods.distance import Distance
from vit_jax.explain.methods.filters import Filters
from vit_jax.explain.methods.gradcam import GradCam
from vit_jax.explain.methods.neighbours import Neighbours
from vit_jax.explain.methods.occlusion import Occlusion
from vit_jax.explain.methods.positions import Positions
from vit_jax.explain.methods.relevance import Relevance
from vit_jax.explain.methods.rollout import Rollout
from vit_jax.explain.methods.similarity import Similarity
from vit_jax.types import UserError

TARGETS = np.array([0, 3, 1], np.int32)
MIXER = {"type": "mixer.Mixer", "width": 8, "depth": 2, "tokens_mlp_dim": 8, "channels_mlp_dim": 8, "patch_size": 4}
SWIN = {"type": "swin.Swin", "width": 8, "depths": (2, 2), "num_heads": (2, 2), "window": 3, "patch_size": 2}


@pytest.fixture(scope="module", params=["tok", "gap", "overlapping"])
def pair(request):
    """A network, and the same traced in torch with the block that Grad-CAM reads by default."""
    overlapping = {"pool": "gap", "patch_size": 8, "stride": 4}
    net = network(**(overlapping if request.param == "overlapping" else {"pool": request.param}))
    return net, Traced(net, images(), TARGETS, block=1 if request.param == "tok" else 2)


def read(matrix, prefix):
    """The patches' part of the row that the head reads."""
    return (matrix[0] if prefix else matrix.mean(axis=0))[prefix:]


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_rollout_multiplies_mean_attention_with_half_identities(pair):
    net, traced = pair
    expected = []
    for b in range(3):
        total = np.eye(traced.weights[0].shape[-1])
        for layer in traced.weights:
            total = (0.5 * layer[b].mean(axis=0) + 0.5 * np.eye(len(total))) @ total
        expected.append(read(total, traced.prefix).reshape(net.grid))
    close(Rollout().maps(net, images(), None), np.stack(expected))


def test_relevance_adds_the_positive_gradient_times_attention(pair):
    net, traced = pair
    expected = []
    for b in range(3):
        total = np.eye(traced.weights[0].shape[-1])
        for layer, gradient in zip(traced.weights, traced.gradients, strict=True):
            total = total + np.maximum(layer[b] * gradient[b], 0).mean(axis=0) @ total
        expected.append(read(total - np.eye(len(total)), traced.prefix).reshape(net.grid))
    close(Relevance().maps(net, images(), TARGETS), np.stack(expected))


def test_gradcam_weights_channels_by_their_mean_gradient(pair):
    net, traced = pair
    tokens, gradients = (x[:, traced.prefix :] for x in (traced.tokens, traced.token_gradients))
    expected = np.maximum(np.einsum("bnd,bd->bn", tokens, gradients.mean(axis=1)), 0).reshape(3, *net.grid)
    assert expected.max() > 0
    close(GradCam().maps(net, images(), TARGETS), expected)


def test_gradcam_of_a_hierarchical_network_reads_the_map_of_a_stage():
    net = network(SWIN)
    flat = {name: np.asarray(leaf, np.float64) for name, leaf in net.loaded.arrays.items()}
    x = net._batched(lambda v, x: net._features(v, x)["stages"][-1], images())
    tokens = torch.tensor(x.astype(np.float64), requires_grad=True)
    scale, bias = (torch.tensor(flat[f"norm/{name}"]) for name in ("scale", "bias"))
    pooled = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], scale, bias, 1e-5).mean(dim=1)
    (pooled @ torch.tensor(flat["head/kernel"]))[range(3), TARGETS].sum().backward()
    expected = np.maximum(np.einsum("bnd,bd->bn", x, tokens.grad.numpy().mean(axis=1)), 0).reshape(3, 4, 4)
    assert expected.max() > 0
    close(GradCam().maps(net, images(), TARGETS), expected)
    assert GradCam(layer=1).maps(net, images(), TARGETS).shape == (3, 8, 8)


def test_attention_distance_is_the_weighted_mean_of_pixels_between_centres(pair):
    net, traced = pair
    step = net.module.stride or net.module.patch_size
    places = [(step * r, step * c) for r in range(net.grid[0]) for c in range(net.grid[1])]
    apart = np.array([[np.hypot(a[0] - b[0], a[1] - b[1]) for b in places] for a in places])
    expected = np.empty((3, 3, 2))
    for layer, weights in enumerate(traced.weights):
        among = weights[:, :, traced.prefix :, traced.prefix :]
        expected[:, layer] = ((among / among.sum(-1, keepdims=True)) * apart).sum(-1).mean(-1)
    close(Distance().arrays(net, images(), None)["distance"], expected)


def test_attention_maps_are_the_weights_of_what_the_head_reads(pair):
    net, traced = pair
    expected = np.stack(
        [[[read(head, traced.prefix).reshape(net.grid) for head in w[b]] for w in traced.weights] for b in range(3)]
    )
    close(Attention().arrays(net, images(), None)["weights"], expected)
    corner = np.stack([[w[b][:, traced.prefix, traced.prefix :] for w in traced.weights] for b in range(3)])
    close(
        Attention(point=(0.0, 0.0)).arrays(net, images(), None)["weights"], corner.reshape(*corner.shape[:3], *net.grid)
    )


def test_attention_pooling_reads_the_relevance_by_its_weights():
    net = network(pool="map", class_token=True)
    found = Relevance().maps(net, images(), TARGETS)
    assert found.shape == (3, 4, 4)
    assert (found.max(axis=(1, 2)) > 0).all()
    assert Attention().arrays(net, images(), None)["pooling"].sum(axis=(2, 3)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("fields", [{"scan": True}, {"attention": "pallas"}])
def test_how_a_network_is_run_does_not_change_its_maps(fields):
    plain = Relevance().maps(network(), images(), TARGETS)
    close(Relevance().maps(network(**fields), images(), TARGETS), plain)


def test_occlusion_is_the_fall_of_the_probability():
    net = network(MIXER)
    found = Occlusion(size=4, stride=4).maps(net, images(1), TARGETS[:1])
    covered = images(1).copy()
    covered[0, 4:8, 8:12] = 128
    whole, rest = (net.probs(x)[0, TARGETS[0]] for x in (images(1), covered))
    np.testing.assert_allclose(found[0, 4:8, 8:12], whole - rest, atol=1e-6)


def test_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    net = network()
    features = net.patch_features(images()).astype(np.float64)
    expected = PCA(3, svd_solver="full").fit_transform(features.reshape(-1, 8)).reshape(3, 4, 4, 3)
    found = Components().arrays(net, images(), None)["components"]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5 * np.abs(expected).max())
    alone = Components(joint=False).arrays(net, images(), None)["components"]
    np.testing.assert_allclose(alone.mean(axis=(1, 2)), 0, atol=1e-6)


def test_filters_are_orthonormal_and_positions_most_similar_to_themselves():
    net = network()
    filters = Filters(count=6).arrays(net, images(), None)["filters"].reshape(6, -1)
    np.testing.assert_allclose(filters @ filters.T, np.eye(6), atol=1e-5)
    table = net.loaded.arrays["posemb/table"][0, net.prefix :]
    found = Positions().arrays(net, images(), None)["similarity"]
    expected = table[2 * 4 + 1] @ table[3] / np.linalg.norm(table[9]) / np.linalg.norm(table[3])
    assert found[2, 1, 0, 3] == pytest.approx(expected, abs=1e-6)


def test_the_nearest_patch_of_an_image_among_others_is_its_own():
    from vit_jax.data.source import Image, Source

    class Both(Source):
        fields = {"image": Image()}  # noqa: RUF012

        def __len__(self):
            return 5

        def __getitem__(self, index):
            return {"image": images(5)[index]}

        def name(self, index):
            return str(index)

    net = network()
    found = Neighbours(Both(), k=2, point=(0.9, 0.1)).arrays(net, images(5)[3:4], None)
    assert found["index"][0, 0] == 3
    assert (found["row"][0, 0], found["column"][0, 0]) == (3, 0)
    assert found["similarity"][0, 0] == pytest.approx(1, abs=1e-5)
    own = Similarity(point=(0.9, 0.1)).maps(net, images(1), None)
    assert own[0, 3, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "lacks"),
    [(MIXER, r"model \(Mixer\) has no attention"), (SWIN, r"model \(Swin\) has attention within windows of 9 tokens")],
    ids=["mixer", "swin"],
)
@pytest.mark.parametrize("name", ["attention", "rollout", "relevance", "distance"])
def test_a_network_without_attention_of_all_tokens_has_none_to_show(name, model, lacks):
    method = next(target for kind, target in types_in("vit_jax.explain.methods").items() if kind.startswith(f"{name}."))
    with pytest.raises(UserError, match=lacks):
        method().check(network(model))


@pytest.mark.parametrize("model", [MIXER, SWIN], ids=["mixer", "swin"])
def test_a_network_without_attention_has_the_maps_that_need_none(model):
    net = network(model)
    for method in (GradCam(), Occlusion(), Similarity()):
        method.check(net)
        assert np.ptp(method.maps(net, images(1), TARGETS[:1])) > 0


def test_attention_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("vit_jax.explain.network.memory_bytes", lambda: 1000)
    with pytest.raises(UserError, match="16 x 16 pixels takes"):
        Rollout().check(network())


def test_a_block_that_is_not_there_is_named():
    with pytest.raises(UserError, match="has 3 blocks"):
        GradCam(layer=4).check(network())
