"""Runs that fall behind are stopped early: asynchronous successive halving (ASHA, arXiv:1810.05934), by Optuna."""

from collections.abc import Sequence
from typing import Any

from vit_jax.types import UserError


class Halving:
    """Judges runs by what they measured on their way, so that most steps go to the best.

    At the first evaluation, and at 4, 16, ... times its step, a run goes on only if it is in the best quarter of those
    that came there so far. mode: "max" or "min".
    """

    def __init__(self, mode: str):
        try:
            import optuna
        except ImportError:
            raise UserError('--search=asha needs Optuna; install it with `pip install -e ".[search]"`.') from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._mode = mode
        self._study: Any = None
        self._trials: dict[str, Any] = {}
        self._seen: dict[str, int] = {}

    def behind(self, name: str, measured: Sequence[tuple[int, float]]) -> bool:
        """Takes what a run measured, as (step, value), and says whether what is new of it is reason to stop the run."""
        verdict = False
        for step, value in measured:
            if step <= self._seen.get(name, 0):  # also what a resumed run measured again
                continue
            self._seen[name] = step
            if self._study is None:
                pruner = self._optuna.pruners.SuccessiveHalvingPruner(min_resource=step)
                direction = "maximize" if self._mode == "max" else "minimize"
                self._study = self._optuna.create_study(direction=direction, pruner=pruner)
            if name not in self._trials:
                self._trials[name] = self._study.ask()
            self._trials[name].report(value, step)
            # Asked at each value, as it then notes what the run had reached at that place.
            verdict |= self._trials[name].should_prune()
        return verdict
