"""Preemption: SIGTERM, which cloud machines send before they are taken away."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Inside the context, SIGTERM sets `requested` instead of ending the process."""

    requested = False

    def __enter__(self) -> "Preemption":
        # With several processes JAX passes the signal on to all; only the main thread can set handlers.
        self._handles = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        if self._handles:
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def due(self, step: int) -> bool:
        """Return whether to save and stop after this step; all processes ask at every step, and get the same answer."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self.requested

    def __exit__(self, *error: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._previous)
