"""Gradients taken a step uphill, which lead to flat minima: SAM (arXiv:2010.01412) and GSAM (arXiv:2203.08065)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax import trees
from vit_jax.grads.gradient import Gradient, Metrics, Plain
from vit_jax.types import Params, UserError

# Keeps a gradient of zero from becoming nan.
EPS = 1e-12


def uphill(params: Params, grads: Params, rho: float | Float[Array, ""], adaptive: bool) -> Params:
    """The parameters after a step of length rho along the gradient (arXiv:2010.01412, equation 2).

    Where `adaptive`, each number's step is in proportion to its size.
    """
    scale = rho / (trees.global_norm(grads) + EPS)

    def moved(param: Array, grad: Array) -> Array:
        return param + (jnp.abs(param) if adaptive else 1.0) * scale * grad

    return jax.tree.map(moved, params, grads)


def dot(a: Params, b: Params) -> Float[Array, ""]:
    """The scalar product of two trees as one long vector."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class Sam(Gradient):
    """Sharpness-aware minimisation: the gradient at the parameters moved by rho along the gradient, for two passes a step.

    The step uphill is that of the whole batch on any number of devices. `inner` takes both gradients. The loss and metrics are
    those before the step uphill; `loss_uphill` is the one after it.
    """

    rho: float = 0.05
    inner: Gradient = dataclasses.field(default_factory=Plain)

    def __post_init__(self):
        if self.rho <= 0:
            raise UserError(f"grad.rho={self.rho}; expected a length above 0.")

    def __call__(self, loss, params, batch, rng, average, lr_share) -> tuple[Metrics, Params]:
        """See Gradient."""
        metrics, grads = self.inner(loss, params, batch, rng, average, lr_share)
        above, grads_above = self.inner(
            loss, uphill(params, grads, self.rho, adaptive=False), batch, rng, average, lr_share
        )
        return metrics | {"loss_uphill": above["loss"]}, grads_above


@dataclasses.dataclass(frozen=True)
class Gsam(Gradient):
    """Surrogate-gap minimisation: SAM's gradient less alpha times the part of the plain one that is orthogonal to it.

    That lowers the loss uphill and its gap to the plain loss at once (arXiv:2203.08065, algorithm 1). rho goes from rho_max at
    the peak of the learning rate to rho_min at 0; `adaptive` makes steps in proportion to the parameters. inner: see Sam.
    """

    rho_max: float = 0.6
    rho_min: float = 0.1
    alpha: float = 0.6
    adaptive: bool = False
    inner: Gradient = dataclasses.field(default_factory=Plain)

    def __post_init__(self):
        if not 0 <= self.rho_min <= self.rho_max or not self.rho_max:
            raise UserError(
                f"grad.rho_min={self.rho_min} and grad.rho_max={self.rho_max}; expected 0 <= rho_min <= rho_max, rho_max > 0."
            )
        if self.alpha < 0:
            raise UserError(f"grad.alpha={self.alpha}; expected a number of at least 0.")

    def __call__(self, loss, params, batch, rng, average, lr_share) -> tuple[Metrics, Params]:
        """See Gradient."""
        metrics, grads = self.inner(loss, params, batch, rng, average, lr_share)
        rho = self.rho_min + (self.rho_max - self.rho_min) * lr_share
        above, grads_above = self.inner(loss, uphill(params, grads, rho, self.adaptive), batch, rng, average, lr_share)
        along = dot(grads, grads_above) / (dot(grads_above, grads_above) + EPS)
        grads = jax.tree.map(lambda plain, up: up - self.alpha * (plain - along * up), grads, grads_above)
        return metrics | {"loss_uphill": above["loss"]}, grads
