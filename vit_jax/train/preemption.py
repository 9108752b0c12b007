"""Notice of an end: SIGTERM, as cloud machines send it before they are taken away."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Inside the context, SIGTERM sets `requested` where it would end the process."""

    requested = False

    def __enter__(self) -> "Preemption":
        # Of several processes the signal to any reaches all through JAX; handlers can be set in the main thread alone.
        self._handles = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        if self._handles:
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def due(self, step: int) -> bool:
        """Whether to save and stop after this step; all processes ask at every step, and are told at the same one."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self.requested

    def __exit__(self, *error: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._previous)
