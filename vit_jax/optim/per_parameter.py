"""Per-parameter weight decay, and factors of the weight decay and the learning rate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vit_jax import trees
from vit_jax.types import Params, UserError, compile_regex

# (regex, {"lr": factor, "weight_decay": factor}): the first regex that matches a parameter's name applies.
Multipliers = list[tuple[str, dict[str, float]]]


def check_multipliers(multipliers: Multipliers) -> None:
    """Raise UserError for a malformed regex, an unknown factor, or a negative one."""
    for pattern, factors in multipliers:
        compile_regex(pattern, "optim.multipliers")
        for key, factor in factors.items():
            if key not in ("lr", "weight_decay") or factor < 0:
                raise UserError(
                    f"optim.multipliers has {key}={factor} for {pattern!r}; expected lr and weight_decay with factors of at "
                    "least 0, such as ('^head/', {'lr': 10.0})."
                )


def factors_of(params: Params, multipliers: Multipliers) -> dict[str, dict[str, float]]:
    """Return the factors of each parameter by name, from the first regex that matches it; empty if no regex does.

    Raises UserError for a regex that matches no parameter, or only parameters that an earlier regex matches.
    """
    factors: dict[str, dict[str, float]] = {name: {} for name in trees.flatten(params)}
    left = list(factors)
    for pattern, given in multipliers:
        found = [name for name in left if compile_regex(pattern, "optim.multipliers").search(name)]
        if not found:
            beyond = "" if len(left) == len(factors) else " that no regex before it finds"
            raise UserError(
                f"optim.multipliers: {pattern!r} finds no parameter{beyond}; names look like {next(iter(factors))!r}."
            )
        factors |= dict.fromkeys(found, given)
        left = [name for name in left if name not in found]
    return factors


def weight_decays(params: Params, weight_decay: float, decay: str, multipliers: Multipliers) -> dict[str, float]:
    """Return the weight decay of each parameter by name, 0 if the regex `decay` does not match.

    Raises UserError if `decay` matches no parameter, or no parameter of a multiplier of the weight decay.
    """
    factors = factors_of(params, multipliers)
    decayed = {name for name in factors if compile_regex(decay, "optim.decay").search(name)}
    if weight_decay and not decayed:
        raise UserError(f"optim.decay={decay!r} matches no parameter; names look like {next(iter(factors))!r}.")
    for pattern, given in multipliers:
        if weight_decay and given.get("weight_decay") and not any(factors[name] is given for name in decayed):
            raise UserError(
                f"optim.multipliers multiplies the weight decay of {pattern!r}, but optim.decay={decay!r} decays none of "
                "these parameters; widen optim.decay."
            )
    return {
        name: weight_decay * given.get("weight_decay", 1.0) if name in decayed else 0.0
        for name, given in factors.items()
    }


def each_by(
    numbers: Callable[[Params], dict[str, float]], change: Callable[[jax.Array, jax.Array, float], jax.Array]
) -> optax.GradientTransformation:
    """Replace each update with change(update, parameter, number), with the numbers by parameter name.

    `init` computes the numbers too, so that a mistake in them shows early.
    """

    def init(params: Params) -> optax.EmptyState:
        numbers(params)
        return optax.EmptyState()

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None):
        assert params is not None
        of = numbers(params)
        return trees.map_named(lambda name, u, p: change(u, p, of[name]), updates, params), state

    return optax.GradientTransformation(init, update)


def decay_towards(
    decays: Callable[[Params], dict[str, float]], factor: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformation:
    """Add decays(params)[name] * factor(step) * parameter to each update."""
    constant = each_by(decays, lambda update, param, share: share * param if share else jnp.zeros_like(update))

    def init(params: Params) -> optax.ScaleByScheduleState:
        constant.init(params)
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: Params, state: optax.ScaleByScheduleState, params: Params | None = None):
        added, _ = constant.update(updates, optax.EmptyState(), params)
        now = factor(state.count)
        changed = jax.tree.map(lambda u, d: u + now.astype(u.dtype) * d, updates, added)
        return changed, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


class DecaysItself(optax.GradientTransformationExtraArgs):
    """A rule that applies the weight decay itself: its update takes decays={name: share of the parameter to add}.

    It scales the updates of decayed parameters by their norms, so these parameters must not be initialized to zero.
    """

    def with_decays(self, decays: Callable[[Params], dict[str, float]]) -> optax.GradientTransformation:
        """Return the rule with these weight decays, which `init` computes too."""

        def init(params: Params) -> optax.OptState:
            decays(params)
            return self.init(params)

        def update(updates: Params, state: optax.OptState, params: Params | None = None):
            assert params is not None
            return self.update(updates, state, params, decays=decays(params))

        return optax.GradientTransformation(init, update)
