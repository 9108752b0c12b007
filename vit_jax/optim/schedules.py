"""Learning-rate schedules: functions of the step, as a share of the peak. One is chosen by `optim.schedule`.

Each begins with a linear warm-up over `warmup_steps`: a number of steps or, below 1, a share of them.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vit_jax.types import UserError

Schedule = Callable[[Any], Any]
KIND = Schedule


def warmup_length(warmup_steps: int | float, steps: int) -> int:
    """The steps of a warm-up given as their number or, below 1, as a share of all steps."""
    if 0 < warmup_steps < 1:
        return round(warmup_steps * steps)
    if not 0 <= warmup_steps <= steps:
        raise UserError(
            f"optim.schedule.warmup_steps={warmup_steps} does not fit into a run of {steps} steps; expected 0 to {steps}, or a "
            "share of them below 1."
        )
    if warmup_steps != int(warmup_steps):
        raise UserError(f"optim.schedule.warmup_steps={warmup_steps}; expected a whole number, or a share below 1.")
    return int(warmup_steps)


def _warmed_up(decay: Schedule, warmup_steps: int, steps: int) -> Schedule:
    """Linear from 0 to 1 over `warmup_steps`, times `decay`, a function of the progress in [0, 1] after the warm-up."""

    def share(step: Any) -> Any:
        progress = jnp.clip((step - warmup_steps) / max(1, steps - warmup_steps), 0.0, 1.0)
        return jnp.minimum(1.0, step / max(1, warmup_steps)) * decay(progress) if warmup_steps else decay(progress)

    return share


def _check_end(end: float) -> None:
    if not 0 <= end <= 1:
        raise UserError(f"optim.schedule.end={end}; expected a share of the peak in [0, 1].")


def cosine(steps: int, warmup_steps: int | float = 0, end: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `end` (arXiv:1608.03983)."""
    _check_end(end)
    return _warmed_up(
        lambda t: end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * t)), warmup_length(warmup_steps, steps), steps
    )


def linear(steps: int, warmup_steps: int | float = 0, end: float = 0.0) -> Schedule:
    """A straight line from 1 to `end`."""
    _check_end(end)
    return _warmed_up(lambda t: 1.0 - (1.0 - end) * t, warmup_length(warmup_steps, steps), steps)


def constant(steps: int, warmup_steps: int | float = 0) -> Schedule:
    """1 after the warm-up."""
    return _warmed_up(lambda t: jnp.ones_like(t), warmup_length(warmup_steps, steps), steps)


def rsqrt(steps: int, warmup_steps: int | float = 0, timescale: int = 10_000, cooldown_steps: int = 0) -> Schedule:
    """Reciprocal square root of the steps since the warm-up, then linear to 0 over the last `cooldown_steps`.

    As scaling-ViT trains without a fixed end (arXiv:2106.04560, section 3.5).
    """
    warmup = warmup_length(warmup_steps, steps)
    if not 0 <= cooldown_steps <= steps - warmup:
        raise UserError(
            f"optim.schedule.cooldown_steps={cooldown_steps} does not fit into {steps} steps after a warm-up of {warmup}."
        )
    if timescale < 1:
        raise UserError(f"optim.schedule.timescale={timescale} must be at least 1.")
    warm = _warmed_up(lambda t: jnp.ones_like(t), warmup, steps)

    def share(step: Any) -> Any:
        since = jnp.maximum(0.0, step - warmup)
        decay = jnp.sqrt(timescale / (timescale + since))
        cool = jnp.clip((steps - step) / cooldown_steps, 0.0, 1.0) if cooldown_steps else 1.0
        return warm(step) * decay * cool

    return share
