import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import peers
from vit_jax.tasks import losses
from vit_jax.tasks.losses import LOSSES, bce, class_targets, kl_divergence, sigmoid_xent, softmax_xent

torch = peers.torch
LOGITS = jax.random.normal(jax.random.key(0), (7, 5)) * 3
LABELS = jnp.array([0, 1, 2, 3, 4, 0, 2])
SOFT = jax.nn.softmax(jax.random.normal(jax.random.key(1), (7, 5)))
TEACHER = jax.random.normal(jax.random.key(2), (7, 5)) * 2


def both(ours, theirs, *arguments):
    """Mean loss and gradient by the first argument, by ours and by torch in float64."""
    value, grad = jax.value_and_grad(lambda x: ours(x, *arguments[1:]).mean())(arguments[0])
    tensors = [torch.tensor(np.asarray(x, np.float64), requires_grad=i == 0) for i, x in enumerate(arguments)]
    expected = theirs(*tensors)
    expected.backward()
    return np.append(grad, value), np.append(tensors[0].grad.numpy(), expected.item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_targets_equal_optax(smoothing):
    expected = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), smoothing)
    np.testing.assert_allclose(class_targets(LABELS, 5, smoothing), expected, rtol=1e-6)


def test_smoothed_targets_equal_timm(agrees):
    from timm.data.mixup import mixup_target

    theirs = mixup_target(torch.tensor(np.array(LABELS)), 5, smoothing=0.1)
    agrees("label smoothing", f"timm {peers.timm.__version__}", class_targets(LABELS, 5, 0.1), theirs, 1e-6)
    many = (jax.random.uniform(jax.random.key(3), (7, 5)) > 0.5).astype(jnp.float32)
    theirs = mixup_target(torch.tensor(np.array(many)), 5, smoothing=0.1, multi_label=True)
    agrees(
        "label smoothing, several labels", f"timm {peers.timm.__version__}", class_targets(many, 5, 0.1), theirs, 1e-6
    )


F = torch.nn.functional
CASES = {
    "softmax cross-entropy": (softmax_xent, F.cross_entropy),
    "sigmoid cross-entropy": (sigmoid_xent, lambda x, t: F.binary_cross_entropy_with_logits(x, t) * 5),
    "BCE": (bce, F.binary_cross_entropy_with_logits),
    "squared error": (losses.squared_error, F.mse_loss),
    "absolute error": (losses.absolute_error, F.l1_loss),
    "Huber error": (losses.huber, F.huber_loss),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_equal_torch(name, agrees):
    ours, theirs = both(*CASES[name], LOGITS, SOFT)
    agrees(f"loss: {name}", f"torch {torch.__version__.partition('+')[0]}", ours, theirs, 1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_divergence_and_gradient_equal_torch(temperature, agrees):
    def theirs(x, t):
        logs = (F.log_softmax(logits / temperature, dim=1) for logits in (x, t))
        return temperature**2 * F.kl_div(*logs, reduction="batchmean", log_target=True)

    results = both(functools.partial(kl_divergence, temperature=temperature), theirs, LOGITS, TEACHER)
    agrees("loss: KL at temperature 1 and 4", f"torch {torch.__version__.partition('+')[0]}", *results, 1e-5)


def test_bce_with_smoothing_and_threshold_equals_timm(agrees):
    from timm.loss import BinaryCrossEntropy

    targets = class_targets(LABELS, 5, 0.1)
    for threshold in (None, 0.2):
        kept = targets if threshold is None else (targets > threshold).astype(jnp.float32)
        theirs = BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold)
        expected = theirs(torch.tensor(np.array(LOGITS)), torch.tensor(np.array(LABELS)))
        agrees(
            "BCE with smoothing and threshold",
            f"timm {peers.timm.__version__}",
            bce(LOGITS, kept).mean(),
            expected,
            1e-6,
        )


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32_for_bfloat16_logits(name):
    assert LOSSES[name](LOGITS.astype(jnp.bfloat16), SOFT).dtype == jnp.float32
