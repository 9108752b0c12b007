import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.models.helpers import apply, images, init
from vit_jax import sharding
from vit_jax.layers import attend
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

HERE = [name for name in attend.FORMS if name != "cudnn" or jax.default_backend() == "gpu"]


def arrays(n=9, dtype="float32"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(2 * rng.standard_normal((2, n, 3, 8)), dtype) for _ in range(4)]


def by_hand(queries, keys, values, gradient, mask=None, bias=0.0):
    """Attention and its derivatives in float64, by the formulas."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (queries, keys, values, gradient))
    scores = np.einsum("bqkh,bnkh->bkqn", q, k) / np.sqrt(8) + np.asarray(bias, np.float64)
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bkqn,bnkh->bqkh", weights, v)
    to_weights = np.einsum("bqkh,bnkh->bkqn", g, v)
    to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdims=True))
    return (
        out,
        np.einsum("bkqn,bnkh->bqkh", to_scores, k) / np.sqrt(8),
        np.einsum("bkqn,bqkh->bnkh", to_scores, q) / np.sqrt(8),
        np.einsum("bkqn,bqkh->bnkh", weights, g),
        to_scores.sum(axis=0),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", HERE)
def test_every_form_and_its_derivative_is_attention(name, dtype):
    if name == "cudnn" and dtype == "float32":
        pytest.skip("cuDNN has it in 16 bits alone")
    *given, gradient = arrays(dtype=dtype)

    def run(*given):
        out, back = jax.vjp(attend.FORMS[name], *given)
        return out, *back(gradient)

    found, expected = jax.jit(run)(*given), by_hand(*given, gradient)
    bound = 1e-5 if dtype == "float32" else 0.02
    for ours, theirs in zip(found, expected[:4], strict=True):
        assert ours.dtype == dtype
        assert np.abs(np.asarray(ours, np.float64) - theirs).max() < bound * np.abs(theirs).max()


def masked_and_biased():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.random((2, 9)) < 0.6), jnp.asarray(rng.standard_normal((3, 9, 9)), "float32")


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", ["plain", "pallas"])
def test_masks_and_biases_change_the_scores(name, masked, biased):
    *given, gradient = arrays()
    mask, bias = (x if used else None for x, used in zip(masked_and_biased(), (masked, biased), strict=True))

    def run(queries, keys, values, bias):
        out, back = jax.vjp(lambda *x: attend.FORMS[name](*x[:3], mask, x[3]), queries, keys, values, bias)
        return out, *back(gradient)

    found = jax.jit(run)(*given, bias)
    expected = by_hand(*given, gradient, None if mask is None else np.asarray(mask), 0.0 if bias is None else bias)
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert (found[-1] is not None) == biased


def test_nan_in_a_masked_token_stays_there():
    *given, _ = arrays()
    mask, bias = masked_and_biased()
    with_nan = [jnp.where(mask[:, :, None, None], x, jnp.nan) for x in given]
    expected = attend.plain(*given, mask, bias)
    for form in (attend.plain, attend.pallas):
        out = form(given[0], *with_nan[1:], mask, bias)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_biases_of_each_image_are_refused_by_the_kernel():
    *given, _ = arrays()
    with pytest.raises(UserError, match="'pallas' takes no relative biases of each image"):
        attend.pallas(*given, None, jnp.zeros((2, 3, 9, 9)))


@pytest.mark.parametrize("name", HERE)
def test_every_form_makes_the_same_model(name):
    x = images(2, 8, 8, 3)
    model, other = (ViT(3, 16, 2, 16, 2, patch_size=4, pool="map", attention=form) for form in ("plain", name))
    params = init(model, x)
    np.testing.assert_allclose(apply(other, params, x), apply(model, params, x), atol=1e-5)


def test_dropout_is_never_lost():
    x = images(2, 8, 8, 3)
    dropping = ViT(3, 16, 1, 16, 2, patch_size=4, attn_dropout=0.5, attention="pallas")
    params = init(dropping, x)
    apply(dropping, params, x)  # without training there is nothing to drop
    with pytest.raises(UserError, match=r"'pallas' has no dropout; found attn_dropout=0\.5"):
        dropping.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)})


def test_weights_are_shown_whatever_the_form():
    x = images(2, 8, 8, 3)
    model = ViT(3, 16, 1, 16, 2, patch_size=4, attention="pallas")
    _, sown = apply(model, init(model, x), x, mutable=["attention"])
    weights = sown["attention"]["encoder"]["block_0"]["attn"]["weights"]
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


def test_auto_is_a_kernel_on_tpus_alone():
    assert attend.choose("auto", 197, whole=True) == "plain"  # a CPU here
    device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu") if hasattr(jax.sharding, "AbstractDevice") else None
    if device is not None:
        mesh = jax.sharding.AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert attend.choose("auto", 197, whole=True) == "pallas"
            assert attend.choose("auto", 197, whole=False) == "plain"
            assert attend.choose("auto", 5000, whole=True) == "plain"
            for shape, form in (((12, 197, 197), "pallas"), ((2, 12, 197, 197), "plain"), ((16, 577, 577), "plain")):
                assert attend.choose("auto", shape[-1], whole=True, bias=jnp.zeros(shape)) == form


def test_a_kernel_finds_its_mesh():
    mesh = sharding.make_mesh(None, data=1, tensor=1)
    *given, _ = arrays()
    found = jax.jit(sharding.on_mesh(attend.pallas, mesh))(*given)
    np.testing.assert_allclose(found, attend.plain(*given), atol=1e-5)
