"""Update rules: what becomes of the gradient before weight decay and learning rate. One is chosen by `optim.rule`."""

import math

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax import trees
from vit_jax.types import DtypeName, UserError, compile_regex

KIND = optax.GradientTransformation


def check_rates(**rates: float) -> None:
    """Raises UserError for a decay rate of a running average outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"optim.rule.{name}={rate}; expected a number in [0, 1).")


def adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, mu_dtype: DtypeName = "float32"
) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980); with `optim.weight_decay` it is AdamW (arXiv:1711.05101)."""
    check_rates(b1=b1, b2=b2)
    if eps <= 0:
        raise UserError(f"optim.rule.eps={eps} must be positive.")
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(mu_dtype))


def sgd(
    momentum: float = 0.9, nesterov: bool = False, momentum_dtype: DtypeName = "bfloat16"
) -> optax.GradientTransformation:
    """SGD with momentum kept in bfloat16, as the original ViT fine-tunes (arXiv:2010.11929, appendix B.1.1)."""
    check_rates(momentum=momentum)
    return optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=jnp.dtype(momentum_dtype))


def muon(
    momentum: float = 0.95, rms: float = 0.2, matrices: str = "(attn|mlp)/.*kernel$", b1: float = 0.9, b2: float = 0.99
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the parameters whose name the regex `matrices` finds, Adam for all others.

    Muon's updates are scaled to a root mean square of about `rms`, that of Adam's, so that both go by one learning rate and
    one weight decay (arXiv:2502.16982, section 2.2). The heads of an attention projection count as one matrix.
    """
    check_rates(momentum=momentum, b1=b1, b2=b2)
    found = compile_regex(matrices, "optim.rule.matrices")

    def dimensions(name: str, leaf: jax.Array) -> contrib.MuonDimensionNumbers:
        if leaf.ndim < 2:
            raise UserError(f"optim.rule.matrices={matrices!r} finds {name} of shape {leaf.shape}, which is no matrix.")
        rows = (
            leaf.ndim - 1 if name.endswith("out/kernel") else 1
        )  # the axes of the inputs, before those of the outputs
        return contrib.MuonDimensionNumbers(tuple(range(rows)), tuple(range(rows, leaf.ndim)))

    def scale(name: str, update: jax.Array) -> jax.Array:
        rows = math.prod(update.shape[axis] for axis in dimensions(name, update).reduction_axis)
        return update * (rms * math.sqrt(max(rows, update.size // rows)))

    matrix_rule = optax.chain(
        contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=lambda tree: trees.map_named(dimensions, tree)),
        optax.stateless(lambda updates, _: trees.map_named(scale, updates)),
    )
    return optax.partition(
        {"muon": matrix_rule, "adam": optax.scale_by_adam(b1=b1, b2=b2)},
        lambda params: trees.map_named(lambda name, _: "muon" if found.search(name) else "adam", params),
    )
