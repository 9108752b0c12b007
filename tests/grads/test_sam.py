import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peers
from vit_jax.grads.accumulate import Accumulate
from vit_jax.grads.gradient import Plain
from vit_jax.grads.sam import Gsam, Sam
from vit_jax.types import UserError

torch = peers.torch
RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(5, 3)).astype(np.float32), "bias": RNG.normal(size=3).astype(np.float32)}
BATCH = {"image": RNG.normal(size=(8, 5)).astype(np.float32), "label": RNG.normal(size=(8, 3)).astype(np.float32)}


def loss(params, batch, rng):
    """A loss with curvature that is not that of a bowl."""
    out = jnp.tanh(batch["image"] @ params["kernel"] + params["bias"][None]) - batch["label"]
    return jnp.mean(out**2 + jnp.sin(out)), ({"mean": out.mean()}, {})


def gradient(method, lr_share=1.0):
    params, batch = jax.tree.map(jnp.asarray, (PARAMS, BATCH))
    metrics, _, grads = method(loss, params, batch, jax.random.key(0), lambda tree: tree, jnp.float32(lr_share))
    return metrics, np.append(grads["kernel"], grads["bias"])


def torch_gradient(at):
    kernel, bias = (torch.tensor(x, requires_grad=True) for x in np.split(at, [15]))
    x, y = (torch.tensor(np.asarray(BATCH[key], np.float64)) for key in ("image", "label"))
    out = torch.tanh(x @ kernel.reshape(5, 3) + bias) - y
    (out**2 + torch.sin(out)).mean().backward()
    return np.append(kernel.grad.numpy(), bias.grad.numpy())


AT = np.append(PARAMS["kernel"], PARAMS["bias"]).astype(np.float64)
HERE = torch_gradient(AT)


def test_sam_is_the_gradient_at_the_step_uphill(agrees):
    expected = torch_gradient(AT + 0.3 * HERE / np.linalg.norm(HERE))
    _, ours = gradient(Sam(rho=0.3))
    agrees("gradient: SAM", "numpy and torch float64", ours, expected, 1e-5)
    assert np.abs(expected - HERE).max() > 0.01


@pytest.mark.parametrize(("share", "adaptive"), [(1.0, True), (0.25, False)])
def test_gsam_takes_off_what_is_orthogonal(share, adaptive, agrees):
    rho = 0.1 + share * (0.6 - 0.1)
    step = rho * HERE / np.linalg.norm(HERE)
    above = torch_gradient(AT + (np.abs(AT) * step if adaptive else step))
    # Gram-Schmidt: the plain gradient divided into what is along the other one and what is not.
    along = above / np.linalg.norm(above)
    orthogonal = HERE - (HERE @ along) * along
    assert abs(orthogonal @ above) < 1e-12
    _, ours = gradient(Gsam(rho_max=0.6, rho_min=0.1, alpha=0.6, adaptive=adaptive), share)
    agrees("gradient: GSAM", "numpy and torch float64", ours, above - 0.6 * orthogonal, 1e-5)


def test_gsam_without_alpha_and_scaling_is_sam():
    _, sam = gradient(Sam(rho=0.2))
    _, gsam = gradient(Gsam(rho_max=0.2, rho_min=0.2, alpha=0.0, adaptive=False))
    np.testing.assert_allclose(gsam, sam, rtol=1e-6)


def test_gsam_that_goes_uphill_by_nothing_is_the_plain_gradient():
    _, gsam = gradient(Gsam(rho_max=0.6, rho_min=0.0, alpha=0.4), 0.0)
    np.testing.assert_allclose(gsam, gradient(Plain())[1], rtol=1e-6)


@pytest.mark.parametrize("method", [Sam, Gsam])
def test_sam_with_accumulation_equals_that_of_the_whole_batch(method):
    np.testing.assert_allclose(gradient(method(inner=Accumulate(4)))[1], gradient(method())[1], rtol=1e-4, atol=1e-6)


def test_the_reported_loss_is_the_plain_one_and_the_one_uphill_is_greater():
    metrics, _ = gradient(Sam(rho=0.1))
    np.testing.assert_allclose(metrics["loss"], gradient(Plain())[0]["loss"], rtol=1e-6)
    assert metrics["loss_uphill"] > metrics["loss"]


@pytest.mark.parametrize("method", [Sam(rho=0.3), Gsam()])
def test_the_step_uphill_is_that_of_the_whole_batch_where_devices_hold_parts(method):
    parts = jax.tree.map(lambda x: jnp.asarray(x).reshape(2, 4, *x.shape[1:]), BATCH)
    average = functools.partial(jax.lax.pmean, axis_name="batch")

    def of_part(part):
        params = jax.tree.map(jnp.asarray, PARAMS)
        return method(loss, params, part, jax.random.key(0), average, jnp.float32(1.0)).grads

    grads = jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(of_part, axis_name="batch"))(parts))
    np.testing.assert_allclose(np.append(grads["kernel"], grads["bias"]), gradient(method)[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sam(rho=0.0), "rho=0.0"),
        (lambda: Gsam(rho_min=0.9, rho_max=0.1), "0 <= rho_min"),
        (lambda: Gsam(alpha=-1.0), "alpha"),
    ],
)
def test_a_wrong_length_is_told(make, says):
    with pytest.raises(UserError, match=says):
        make()
