"""The optimiser: clip the gradient, apply an update rule, decay the weights, scale by the scheduled learning rate."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from vit_jax.optim.layer_decay import scale_by_layer
from vit_jax.optim.per_parameter import (
    DecaysItself,
    Multipliers,
    check_multipliers,
    decay_towards,
    each_by,
    factors_of,
    weight_decays,
)
from vit_jax.optim.schedules import Schedule
from vit_jax.types import Params, UserError, compile_regex

DECAYED = "kernel$"  # the parameters that decay


def make_optimizer(
    rule: optax.GradientTransformation,
    schedule: Schedule,
    lr: float,
    weight_decay: float = 0.0,
    decay: str = DECAYED,
    multipliers: Multipliers | None = None,
    clip_norm: float | None = None,
    layer_decay: float | None = None,
    weight_decay_end: float | None = None,
    *,
    steps: int = 1,
    layers: Callable[[], Mapping[str, int]] | None = None,
) -> tuple[optax.GradientTransformation, Schedule]:
    """Return the optimiser, and the learning rate as a function of the step.

    `weight_decay` is decoupled and multiplied by the learning rate (arXiv:1711.05101); it shrinks the parameters whose
    name matches the regex `decay`. `multipliers` are (regex, {"lr": factor, "weight_decay": factor}); the first regex
    that matches a parameter's name applies: "lr" multiplies the update of the rule, "weight_decay" the decay, like
    big_vision's lr_mults and wd_mults. `clip_norm` bounds the global norm of the gradient. `layer_decay` multiplies the
    learning rate, and so the decay, by this factor from each layer to the layer before it; `layers` returns the layer
    of each parameter by name (see layer_decay.py). With `weight_decay_end` the decay changes to it along a half cosine
    over the `steps` of the run, as in DINO (arXiv:2104.14294, section 3.2).
    """
    if lr < 0 or weight_decay < 0 or (clip_norm is not None and clip_norm <= 0):
        raise UserError(
            f"optim has lr={lr}, weight_decay={weight_decay}, clip_norm={clip_norm}; lr and weight_decay may not be "
            "negative, clip_norm must be positive, or None for no clipping."
        )
    if weight_decay_end is not None and (weight_decay_end < 0 or not weight_decay or isinstance(rule, DecaysItself)):
        raise UserError(
            f"optim.weight_decay_end is {weight_decay_end}, with weight_decay={weight_decay}; expected a number of at least 0, a "
            "weight_decay above 0 to begin with, and a rule other than lamb and lars."
        )
    compile_regex(decay, "optim.decay")
    multipliers = multipliers or []
    check_multipliers(multipliers)
    decays = functools.partial(weight_decays, weight_decay=weight_decay, decay=decay, multipliers=multipliers)

    def learning_rate(step):
        return lr * schedule(step)

    def lr_factors(params: Params) -> dict[str, float]:
        return {name: factors.get("lr", 1.0) for name, factors in factors_of(params, multipliers).items()}

    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    scale = [each_by(lr_factors, lambda update, _, factor: factor * update)] if multipliers else []
    if isinstance(rule, DecaysItself):
        parts += [rule.with_decays(decays), *scale]
    else:
        if weight_decay_end is None:
            shrink = each_by(decays, lambda update, param, share: update + share * param if share else update)
        else:
            ratio = weight_decay_end / weight_decay
            shrink = decay_towards(
                decays,
                lambda step: ratio + (1.0 - ratio) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0))),
            )
        parts += [rule, *scale, *([shrink] if weight_decay else [])]
    if layer_decay is not None:
        if layers is None:
            raise UserError(f"optim.layer_decay={layer_decay} needs a network whose layers are known.")
        parts += [scale_by_layer(layer_decay, layers)]
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate)), learning_rate


def norm_scaled(rule: optax.GradientTransformation, params: Params, optim: Mapping[str, Any]) -> frozenset[str]:
    """Return the parameters whose updates the rule of a config scales by their norms."""
    if not isinstance(rule, DecaysItself):
        return frozenset()
    given = {key: optim[key] for key in ("weight_decay", "decay") if optim.get(key) is not None}
    decays = weight_decays(
        params, **{"weight_decay": 0.0, "decay": DECAYED, **given}, multipliers=optim.get("multipliers") or []
    )
    return frozenset(name for name, share in decays.items() if share)
