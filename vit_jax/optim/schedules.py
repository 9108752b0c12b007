"""Learning-rate schedules: functions of the step, as a share of the peak. One is chosen by `optim.schedule`."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vit_jax.types import UserError

Schedule = Callable[[Any], Any]
KIND = Schedule


def _warmed_up(decay: Schedule, warmup_steps: int, steps: int) -> Schedule:
    """Linear from 0 to 1 over `warmup_steps`, times `decay`, a function of the progress in [0, 1] after the warm-up."""
    if not 0 <= warmup_steps <= steps:
        raise UserError(
            f"optim.schedule.warmup_steps={warmup_steps} does not fit into a run of {steps} steps; expected 0 to {steps}."
        )

    def share(step: Any) -> Any:
        progress = jnp.clip((step - warmup_steps) / max(1, steps - warmup_steps), 0.0, 1.0)
        return jnp.minimum(1.0, step / max(1, warmup_steps)) * decay(progress) if warmup_steps else decay(progress)

    return share


def _check_end(end: float) -> None:
    if not 0 <= end <= 1:
        raise UserError(f"optim.schedule.end={end}; expected a share of the peak in [0, 1].")


def cosine(steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `end` (arXiv:1608.03983)."""
    _check_end(end)
    return _warmed_up(lambda t: end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * t)), warmup_steps, steps)


def linear(steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """A straight line from 1 to `end`."""
    _check_end(end)
    return _warmed_up(lambda t: 1.0 - (1.0 - end) * t, warmup_steps, steps)


def constant(steps: int, warmup_steps: int = 0) -> Schedule:
    """1 after the warm-up."""
    return _warmed_up(lambda t: jnp.ones_like(t), warmup_steps, steps)


def rsqrt(steps: int, warmup_steps: int = 0, timescale: int = 10_000, cooldown_steps: int = 0) -> Schedule:
    """Reciprocal square root of the steps since the warm-up, then linear to 0 over the last `cooldown_steps`.

    As scaling-ViT trains without a fixed end (arXiv:2106.04560, section 3.5).
    """
    if not 0 <= cooldown_steps <= steps - warmup_steps:
        raise UserError(
            f"optim.schedule.cooldown_steps={cooldown_steps} does not fit into {steps} steps after warmup_steps={warmup_steps}."
        )
    if timescale < 1:
        raise UserError(f"optim.schedule.timescale={timescale} must be at least 1.")
    warm = _warmed_up(lambda t: jnp.ones_like(t), warmup_steps, steps)

    def share(step: Any) -> Any:
        since = jnp.maximum(0.0, step - warmup_steps)
        decay = jnp.sqrt(timescale / (timescale + since))
        cool = jnp.clip((steps - step) / cooldown_steps, 0.0, 1.0) if cooldown_steps else 1.0
        return warm(step) * decay * cool

    return share
