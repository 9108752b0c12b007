"""Gradients computed a step uphill, which lead to flat minima: SAM (arXiv:2010.01412) and GSAM (arXiv:2203.08065)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax import trees
from vit_jax.grads.gradient import Gradient, Plain, StepGradient
from vit_jax.types import Params, UserError

# Keeps a gradient of zero from becoming nan.
EPS = 1e-12


def uphill(params: Params, grads: Params, rho: float | Float[Array, ""], adaptive: bool) -> Params:
    """Return the parameters after a step of length rho along the gradient (arXiv:2010.01412, equation 2).

    With `adaptive`, the step of each parameter is proportional to its magnitude.
    """
    scale = rho / (trees.global_norm(grads) + EPS)

    def moved(param: Array, grad: Array) -> Array:
        return param + (jnp.abs(param) if adaptive else 1.0) * scale * grad

    return jax.tree.map(moved, params, grads)


def dot(a: Params, b: Params) -> Float[Array, ""]:
    """Return the dot product of two trees as flat vectors."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class Sam(Gradient):
    """Sharpness-aware minimisation: the gradient at the parameters moved by rho along the gradient; two passes per step.

    The step uphill follows the gradient of the whole batch on any number of devices. `inner` computes both gradients.
    Loss, metrics and stats are from before the step uphill; `loss_uphill` is from after it.
    """

    rho: float = 0.05
    inner: Gradient = dataclasses.field(default_factory=Plain)

    @property
    def splits_batch(self) -> bool:  # type: ignore[override]
        """See Gradient."""
        return self.inner.splits_batch

    def __post_init__(self):
        if self.rho <= 0:
            raise UserError(f"grad.rho={self.rho}; expected a length above 0.")

    def __call__(self, loss, params, batch, rng, average, lr_share) -> StepGradient:
        """See Gradient."""
        here = self.inner(loss, params, batch, rng, average, lr_share)
        uphill_params = uphill(params, here.grads, self.rho, adaptive=False)
        above = self.inner(loss, uphill_params, batch, rng, average, lr_share)
        return StepGradient({**here.metrics, "loss_uphill": above.metrics["loss"]}, here.stats, above.grads)


@dataclasses.dataclass(frozen=True)
class Gsam(Gradient):
    """Surrogate-gap minimisation: SAM's gradient minus alpha times the plain gradient's component orthogonal to it.

    This lowers both the loss uphill and its gap to the plain loss (arXiv:2203.08065, algorithm 1). rho goes from
    rho_max at the peak of the learning rate to rho_min at 0. adaptive: see `uphill`. inner: see Sam.
    """

    rho_max: float = 0.6
    rho_min: float = 0.1
    alpha: float = 0.6
    adaptive: bool = False
    inner: Gradient = dataclasses.field(default_factory=Plain)

    @property
    def splits_batch(self) -> bool:  # type: ignore[override]
        """See Gradient."""
        return self.inner.splits_batch

    def __post_init__(self):
        if not 0 <= self.rho_min <= self.rho_max or not self.rho_max:
            raise UserError(
                f"grad.rho_min={self.rho_min} and grad.rho_max={self.rho_max}; expected 0 <= rho_min <= rho_max, rho_max > 0."
            )
        if self.alpha < 0:
            raise UserError(f"grad.alpha={self.alpha}; expected a number of at least 0.")

    def __call__(self, loss, params, batch, rng, average, lr_share) -> StepGradient:
        """See Gradient."""
        here = self.inner(loss, params, batch, rng, average, lr_share)
        rho = self.rho_min + (self.rho_max - self.rho_min) * lr_share
        uphill_params = uphill(params, here.grads, rho, self.adaptive)
        above = self.inner(loss, uphill_params, batch, rng, average, lr_share)
        along = dot(here.grads, above.grads) / (dot(above.grads, above.grads) + EPS)
        grads = jax.tree.map(lambda plain, up: up - self.alpha * (plain - along * up), here.grads, above.grads)
        return StepGradient({**here.metrics, "loss_uphill": above.metrics["loss"]}, here.stats, grads)
