"""Stop runs early by asynchronous successive halving (ASHA, arXiv:1810.05934), with Optuna."""

from collections.abc import Sequence
from typing import Any

from vit_jax.types import UserError


class SuccessiveHalving:
    """Decides which runs to stop early, so that most steps are spent on the best runs.

    At the first evaluation, and at 4, 16, ... times its step, a run continues only if it is in the best quarter of the
    runs that have reached this step so far. mode: "max" or "min".
    """

    def __init__(self, mode: str):
        try:
            import optuna
        except ImportError:
            raise UserError('--search=asha needs Optuna; install it with `pip install -e ".[asha]"`.') from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._mode = mode
        self._study: Any = None
        self._trials: dict[str, Any] = {}
        self._last_step: dict[str, int] = {}

    def should_stop(self, name: str, measured: Sequence[tuple[int, float]]) -> bool:
        """Record a run's measurements, as (step, value), and return whether to stop it because of new ones."""
        verdict = False
        for step, value in measured:
            if step <= self._last_step.get(name, 0):  # known, or measured again after resuming
                continue
            self._last_step[name] = step
            if self._study is None:
                pruner = self._optuna.pruners.SuccessiveHalvingPruner(min_resource=step)
                direction = "maximize" if self._mode == "max" else "minimize"
                self._study = self._optuna.create_study(direction=direction, pruner=pruner)
            if name not in self._trials:
                self._trials[name] = self._study.ask()
            self._trials[name].report(value, step)
            # Called for every value, because Optuna records the rungs that a trial has passed in this call.
            verdict |= self._trials[name].should_prune()
        return verdict
