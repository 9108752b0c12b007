"""The optimiser: clip the gradient, apply an update rule, decay the weights, scale by the scheduled learning rate."""

import optax

from vit_jax import trees
from vit_jax.optim.layer_decay import scale_by_layer
from vit_jax.optim.schedules import Schedule
from vit_jax.types import Params, UserError, compile_regex


def make_optimizer(
    rule: optax.GradientTransformation,
    schedule: Schedule,
    lr: float,
    weight_decay: float = 0.0,
    decay: str = "kernel$",
    clip_norm: float | None = None,
    layer_decay: float | None = None,
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimiser, and the learning rate as a function of the step.

    `weight_decay` is decoupled and multiplied by the learning rate (arXiv:1711.05101); it shrinks the parameters whose name
    the regex `decay` finds. `clip_norm` bounds the global norm of the gradient. `layer_decay` makes the learning rate smaller
    by this factor from each block to the one before it (see layer_decay.py).
    """
    if lr < 0 or weight_decay < 0 or (clip_norm is not None and clip_norm <= 0):
        raise UserError(
            f"optim has lr={lr}, weight_decay={weight_decay}, clip_norm={clip_norm}; lr and weight_decay may not be "
            "negative, clip_norm must be positive, or None for no clipping."
        )
    decayed = compile_regex(decay, "optim.decay")

    def learning_rate(step):
        return lr * schedule(step)

    def mask(params: Params):
        found = trees.map_named(lambda name, _: decayed.search(name) is not None, params)
        if not any(trees.flatten(found).values()):
            raise UserError(
                f"optim.decay={decay!r} matches no parameter; names look like {next(iter(trees.flatten(params)))!r}."
            )
        return found

    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts += [rule]
    parts += [optax.add_decayed_weights(weight_decay, mask)] if weight_decay else []
    parts += [scale_by_layer(layer_decay)] if layer_decay is not None else []
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate)), learning_rate
