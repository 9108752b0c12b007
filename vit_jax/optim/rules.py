"""Update rules: from the gradient to the update before weight decay and learning rate; chosen by `optim.rule`."""

import math

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax import trees
from vit_jax.optim.per_parameter import DecaysItself
from vit_jax.types import DtypeName, Params, UserError, compile_regex

KIND = optax.GradientTransformation


def _check_eps(eps: float) -> None:
    if eps <= 0:
        raise UserError(f"optim.rule.eps={eps} must be positive.")


def check_rates(**rates: float) -> None:
    """Raise UserError for a decay rate of a running average outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"optim.rule.{name}={rate}; expected a number in [0, 1).")


def adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, mu_dtype: DtypeName = "float32"
) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980); with `optim.weight_decay` it is AdamW (arXiv:1711.05101)."""
    check_rates(b1=b1, b2=b2)
    _check_eps(eps)
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(mu_dtype))


def sgd(
    momentum: float = 0.9, nesterov: bool = False, momentum_dtype: DtypeName = "bfloat16"
) -> optax.GradientTransformation:
    """SGD with momentum kept in bfloat16, as for fine-tuning the original ViT (arXiv:2010.11929, appendix B.1.1)."""
    check_rates(momentum=momentum)
    return optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=jnp.dtype(momentum_dtype))


def adafactor(
    momentum: float = 0.9,
    beta2_cap: float = 0.999,
    min_dim_size_to_factor: int = 32,
    momentum_dtype: DtypeName = "bfloat16",
) -> optax.GradientTransformation:
    """Adafactor as modified for scaling ViTs (arXiv:2106.04560, section 3.5): like Adam, with a quarter of its state.

    The mean square of the gradient is factored into rows and columns (arXiv:1804.04235, algorithm 4) if two dimensions
    are at least `min_dim_size_to_factor`; its decay rate in step t is 1 - t^-0.8, at most `beta2_cap`. The momentum has
    no bias correction. As in the authors' configs there are no relative step sizes and no clipping of each parameter's
    update. t counts from 1 also in a run that is initialized from another model.
    """
    check_rates(momentum=momentum, beta2_cap=beta2_cap)
    if min_dim_size_to_factor < 1:
        raise UserError(f"optim.rule.min_dim_size_to_factor={min_dim_size_to_factor} must be at least 1.")
    mean_square = optax.scale_by_factored_rms(
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=0.8,
        decay_rate_fn=lambda step, power: jnp.minimum(beta2_cap, 1.0 - (step + 1.0) ** -power),
    )
    if not momentum:
        return mean_square
    return optax.chain(mean_square, optax.ema(momentum, debias=False, accumulator_dtype=jnp.dtype(momentum_dtype)))


def lion(b1: float = 0.9, b2: float = 0.99, mu_dtype: DtypeName = "float32") -> optax.GradientTransformation:
    """Lion (arXiv:2302.06675, algorithm 2); use a 3 to 10 times smaller lr than for Adam, and as much more decay."""
    check_rates(b1=b1, b2=b2)
    return optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=jnp.dtype(mu_dtype))


def lamb(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
    """LAMB (arXiv:1904.00962, algorithm 2) as in DeiT-III (arXiv:2204.07118): Adam with a trust ratio.

    The update of a decayed parameter, including the decay, is scaled to the norm of the parameter; all other parameters
    use plain Adam. The original implementations also clip the gradient to a global norm of 1 (`optim.clip_norm`), and
    join query, key and value in one parameter, which are three here. Raises UserError if nothing is decayed.
    """
    check_rates(b1=b1, b2=b2)
    _check_eps(eps)
    adam, trust = optax.scale_by_adam(b1=b1, b2=b2, eps=eps), optax.scale_by_trust_ratio()

    def update(updates: Params, state: optax.OptState, params: Params | None = None, *, decays: dict[str, float]):
        if not any(decays.values()):
            raise UserError(
                "optim.rule lamb adapts only the decayed parameters, and optim.weight_decay=0 leaves none; set it, "
                "such as to 0.02, or use adam."
            )
        updates, state = adam.update(updates, state, params)

        def adapt(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
            if not decays[name]:
                return update
            return trust.update(update + decays[name] * param, optax.EmptyState(), param)[0]

        return trees.map_named(adapt, updates, params), state

    return DecaysItself(adam.init, update)


def lars(momentum: float = 0.9, trust_coefficient: float = 0.001) -> optax.GradientTransformation:
    """LARS (arXiv:1708.03888, algorithm 1), used for linear probing by MoCo v3 and MAE (arXiv:2111.06377, table 10).

    The gradient of a parameter with two or more dimensions, including the decay, is scaled to trust_coefficient times
    the norm of the parameter, if neither norm is zero, before it enters the momentum.
    """
    check_rates(momentum=momentum)
    trace = optax.trace(decay=momentum)
    trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)

    def update(updates: Params, state: optax.OptState, params: Params | None = None, *, decays: dict[str, float]):
        def adapt(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
            if param.ndim < 2:
                return update
            return trust.update(update + decays[name] * param, optax.EmptyState(), param)[0]

        return trace.update(trees.map_named(adapt, updates, params), state, params)

    return DecaysItself(trace.init, update)


def muon(
    momentum: float = 0.95, rms: float = 0.2, matrices: str = "(attn|mlp)/.*kernel$", b1: float = 0.9, b2: float = 0.99
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for parameters whose name matches the regex `matrices`, Adam for all other parameters.

    Muon's updates are scaled to a root mean square of about `rms`, like Adam's, so that both share one learning rate
    and weight decay (arXiv:2502.16982, section 2.2). The heads of an attention projection count as one matrix.
    """
    check_rates(momentum=momentum, b1=b1, b2=b2)
    found = compile_regex(matrices, "optim.rule.matrices")

    def dimensions(name: str, leaf: jax.Array) -> contrib.MuonDimensionNumbers:
        if leaf.ndim < 2:
            raise UserError(f"optim.rule.matrices={matrices!r} finds {name} of shape {leaf.shape}, which is no matrix.")
        rows = leaf.ndim - 1 if name.endswith("out/kernel") else 1  # the input axes, which precede the output axes
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
