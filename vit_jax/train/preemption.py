"""Handle preemption and Ctrl-C: SIGTERM, which cloud machines get before they are shut down, and SIGINT."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from vit_jax import interrupts

T = TypeVar("T")


class Preemption:
    """Within the context, SIGTERM sets `requested` instead of ending the process; `ctrl_c` is the same for Ctrl-C."""

    requested = False

    def __enter__(self) -> "Preemption":
        self._stack = contextlib.ExitStack()
        self.ctrl_c = self._stack.enter_context(interrupts.active())
        # With several processes JAX passes the signal on to all; only the main thread can set handlers.
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, self._notice))
        return self

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def due(self, step: int) -> bool:
        """Return whether to save and stop after this step; all processes ask at every step, and get the same answer."""
        if jax.process_count() == 1:
            due = self.requested or self.ctrl_c.requested
        else:
            if self.ctrl_c.requested and not self.requested:
                self.requested = True
                os.kill(os.getpid(), signal.SIGTERM)
            due = multihost_utils.reached_preemption_sync_point(step)
        self.ctrl_c.saving |= due
        return due

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; in a run of one process, Ctrl-C raises KeyboardInterrupt while it waits for a batch."""
        iterator = iter(batches)
        while True:
            try:
                with self.ctrl_c.deferred(jax.process_count() > 1):
                    batch = next(iterator)
            except StopIteration:
                return
            yield batch

    def checked(self, function: Callable[..., T]) -> Callable[..., T]:
        """Return the function, but raising KeyboardInterrupt after Ctrl-C if this is the only process."""

        def call(*args: Any) -> T:
            if self.ctrl_c.requested and jax.process_count() == 1:
                raise KeyboardInterrupt
            return function(*args)

        return call

    def __exit__(self, *error: object) -> None:
        self._stack.close()
