"""Notice of an end: SIGTERM, as cloud machines send it before they are taken away."""

import signal
import threading
from types import FrameType


class Preemption:
    """Inside the context, SIGTERM sets `requested` where it would end the process."""

    requested = False

    def __enter__(self) -> "Preemption":
        self._main = threading.current_thread() is threading.main_thread()  # only there can handlers be set
        if self._main:
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._previous)
