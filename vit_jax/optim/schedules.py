"""Learning-rate schedules: functions of the step, as a share of the peak; chosen by `optim.schedule`.

Each begins with a linear warm-up over `warmup_steps`. Lengths are a number of steps or, below 1, a share of all steps.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from vit_jax.types import UserError

Schedule = Callable[[Any], Any]
KIND = Schedule


def _length(key: str, given: int | float, steps: int, warmup: int = 0) -> int:
    """Return a length in steps, given as a number or, below 1, a share of all steps; it must fit after the warm-up."""
    length = round(given * steps) if 0 < given < 1 else given
    if not 0 <= length <= steps - warmup:
        raise UserError(
            f"optim.schedule.{key}={given} does not fit into a run of {steps} steps"
            + (f" after a warm-up of {warmup}" if warmup else "")
            + f"; expected 0 to {steps - warmup}, or a share of the run below 1, such as --config.optim.schedule.{key}=0.1."
        )
    if length != int(length):
        raise UserError(f"optim.schedule.{key}={given}; expected a whole number, or a share below 1.")
    return int(length)


def _warmed_up(
    decay: Schedule, warmup_steps: int, steps: int, start: float = 0.0, count_warmup: bool = False
) -> Schedule:
    """Warm up linearly from `start` to 1 over `warmup_steps`, then follow `decay`, a function of progress in [0, 1].

    The progress counts the steps after the warm-up, or all steps with count_warmup.
    """
    begin = 0 if count_warmup else warmup_steps

    def share(step: Any) -> Any:
        decayed = decay(jnp.clip((step - begin) / max(1, steps - begin), 0.0, 1.0))
        if not warmup_steps:
            return decayed
        return jnp.where(step < warmup_steps, start + (1.0 - start) * step / warmup_steps, decayed)

    return share


def _check_shares(**shares: float) -> None:
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"optim.schedule.{key}={share}; expected a share of the peak in [0, 1].")


def _half_cosine(t: Any) -> Any:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * t))


def cosine(
    steps: int, warmup_steps: int | float = 0, end: float = 0.0, start: float = 0.0, count_warmup: bool = False
) -> Schedule:
    """Half a cosine from 1 to `end` (arXiv:1608.03983), after a warm-up from `start`.

    The original ViT and big_vision use the defaults, MAE (arXiv:2111.06377) uses `end`. DeiT (arXiv:2012.12877), in
    timm's code, uses end=min_lr / lr, start=warmup_lr / lr and count_warmup=True: its cosine counts from step 0, so
    that the warm-up ends slightly above it. In timm the rate changes once per epoch, here at every step.
    """
    _check_shares(end=end, start=start)
    warmup = _length("warmup_steps", warmup_steps, steps)
    return _warmed_up(lambda t: end + (1.0 - end) * _half_cosine(t), warmup, steps, start, count_warmup)


def linear(steps: int, warmup_steps: int | float = 0, end: float = 0.0) -> Schedule:
    """Return a straight line from 1 to `end`, which is `linear_end` / lr in the original ViT's code."""
    _check_shares(end=end)
    return _warmed_up(lambda t: 1.0 - (1.0 - end) * t, _length("warmup_steps", warmup_steps, steps), steps)


def constant(steps: int, warmup_steps: int | float = 0) -> Schedule:
    """1 after the warm-up."""
    return _warmed_up(lambda t: jnp.ones_like(t), _length("warmup_steps", warmup_steps, steps), steps)


def multistep(
    steps: int,
    warmup_steps: int | float = 0,
    milestones: tuple[int | float, ...] = (0.5, 0.75),
    factor: float = 0.1,
    start: float = 0.0,
) -> Schedule:
    """1 after a warm-up from `start`, multiplied by `factor` at each milestone, as in SimMIM (arXiv:2111.09886)."""
    _check_shares(factor=factor, start=start)
    warmup = _length("warmup_steps", warmup_steps, steps)
    at = [_length("milestones", milestone, steps) for milestone in milestones]
    if at != sorted(at) or at[:1] < [warmup]:
        raise UserError(
            f"optim.schedule.milestones={milestones} of {steps} steps, with a warm-up of {warmup}; expected one or more in rising "
            "order, after the warm-up."
        )
    warm = _warmed_up(lambda t: jnp.ones_like(t), warmup, steps, start)
    return lambda step: warm(step) * factor ** sum(jnp.where(step >= milestone, 1.0, 0.0) for milestone in at)


def rsqrt(
    steps: int, warmup_steps: int | float = 0, timescale: int = 10_000, cooldown_steps: int | float = 0
) -> Schedule:
    """Reciprocal square root of the steps since the warm-up, then linear to 0 over the last `cooldown_steps`.

    Used by scaling-ViT to train without a fixed end (arXiv:2106.04560, section 3.5), and by big_vision.
    """
    warmup = _length("warmup_steps", warmup_steps, steps)
    cooldown = _length("cooldown_steps", cooldown_steps, steps, warmup)
    if timescale < 1:
        raise UserError(f"optim.schedule.timescale={timescale} must be at least 1.")
    warm = constant(steps, warmup)

    def share(step: Any) -> Any:
        since = jnp.maximum(0.0, step - warmup)
        decay = jnp.sqrt(timescale / (timescale + since))
        cool = jnp.clip((steps - step) / cooldown, 0.0, 1.0) if cooldown else 1.0
        return warm(step) * decay * cool

    return share


def wsd(
    steps: int,
    warmup_steps: int | float = 0,
    decay_steps: int | float = 0.2,
    shape: Literal["linear", "sqrt", "cosine"] = "sqrt",
    end: float = 0.0,
) -> Schedule:
    """Warm-up, stable, decay (arXiv:2404.06395): 1 until the last `decay_steps`, over which it falls to `end`.

    shape "sqrt" falls as 1 - sqrt(progress), the best in arXiv:2405.18392, which finds a fifth of the run long enough.
    """
    _check_shares(end=end)
    warmup = _length("warmup_steps", warmup_steps, steps)
    length = _length("decay_steps", decay_steps, steps, warmup)
    warm = constant(steps, warmup)
    fall = {"linear": lambda t: 1.0 - t, "sqrt": lambda t: 1.0 - jnp.sqrt(t), "cosine": _half_cosine}[shape]

    def share(step: Any) -> Any:
        progress = jnp.clip((step - (steps - length)) / max(1, length), 0.0, 1.0)
        return warm(step) * (end + (1.0 - end) * fall(progress))

    return share
