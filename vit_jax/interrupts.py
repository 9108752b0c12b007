"""Handle Ctrl-C: end a command within seconds, whatever it is doing, without a traceback.

Python's own KeyboardInterrupt cannot do this. Inside JAX it is swallowed, or crashes the process if C++ called Python,
and while a program compiles, the main thread does not run Python at all.
"""

import _thread
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

GRACE = 8.0  # seconds in which to exit after Ctrl-C
RETRY = 0.1
EXIT_CODE = 130  # as in shells, after Ctrl-C
# Modules whose functions cannot be interrupted; an interrupted import of a C++ extension raises another exception.
UNSAFE = ("jax", "jaxlib", "importlib")


class Interrupts:
    """Within the context, Ctrl-C raises KeyboardInterrupt in the main thread once it neither imports nor runs JAX.

    With `ends_process`, the process exits at once if it is still running GRACE seconds later, or at a second Ctrl-C.
    Within `deferred` nothing is raised.
    """

    current: "Interrupts | None" = None  # of the running command

    def __init__(self, ends_process: bool = True):
        self.requested = False
        self.safe: Callable[[], str] | None = None  # says what is saved, for the message of an immediate exit
        self.saving = False  # while True, there is no time limit
        self._ends_process = ends_process
        self._is_deferred = self._raised = False

    def __enter__(self) -> "Interrupts":
        # A background job of a shell ignores Ctrl-C, and only the main thread can set handlers.
        self._handles = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if not self._handles:
            return self
        signal.signal(signal.SIGINT, self._notice)
        if self._ends_process:
            Interrupts.current = self
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked while the process re-executed itself
        return self

    def __exit__(self, *error: object) -> None:
        if not self._handles:
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._ends_process:
            Interrupts.current = None
            signal.set_wakeup_fd(self._wakeup)
            sys.unraisablehook = self._hook
            os.close(self._pipe[1])
            self._thread.join()
            os.close(self._pipe[0])

    @contextlib.contextmanager
    def deferred(self, yes: bool = True) -> Iterator[None]:
        """Within the context, Ctrl-C only sets `requested`, and raises at its end; nested `deferred(False)` raises."""
        before, self._is_deferred = self._is_deferred, yes
        try:
            if self.requested and not yes:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_deferred = before
            self._raised |= self.requested and not before
        if self.requested and not before:
            raise KeyboardInterrupt

    def _notice(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested and not self._ends_process, True
        if again or not (self._is_deferred or self._raised or _is_unsafe(frame)):
            self._raised = True
            raise KeyboardInterrupt

    def _swallowed(self, late: "sys.UnraisableHookArgs") -> None:
        """Allow another KeyboardInterrupt if one was lost in a callback, such as of the garbage collector."""
        if isinstance(late.exc_value, KeyboardInterrupt):
            self._raised = False
        else:
            self._hook(late)

    def _watch(self) -> None:
        """Watch for signals in the pipe, which receives them even while the main thread is in C++."""
        received = sent = 0
        deadline = None
        while chunk := self._next_signals(None if deadline is None else RETRY):
            received += chunk.count(signal.SIGINT)
            if signal.getsignal(signal.SIGINT) != self._notice:  # a command handles Ctrl-C itself
                received = sent
            if received == sent:
                continue
            if deadline is None:
                deadline, self.requested = time.monotonic() + GRACE, True
                print("\nCtrl-C: stopping; press it again to stop at once", file=sys.stderr, flush=True)
            if self.saving:
                deadline = time.monotonic() + GRACE
            if received > sent + 1 or time.monotonic() > deadline:
                self._end()
            if not (self._is_deferred or self._raised):
                sent += 1
                _thread.interrupt_main(signal.SIGINT)  # writes to the pipe too

    def _next_signals(self, seconds: float | None) -> bytes:
        """Return the numbers of received signals, a zero byte after a timeout, or nothing once the pipe is closed."""
        ready, _, _ = select.select([self._pipe[0]], [], [], seconds)
        return os.read(self._pipe[0], 64) if ready else b"\0"

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            print(f"stopped at once{'; ' + self.safe() if self.safe else ''}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(EXIT_CODE)


@contextlib.contextmanager
def active() -> Iterator[Interrupts]:
    """Yield the Interrupts of the running command or, in a user's program, one that never ends the process."""
    if Interrupts.current is not None:
        yield Interrupts.current
        return
    with Interrupts(ends_process=False) as interrupts:
        yield interrupts


def leave(code: int) -> NoReturn:
    """Exit with a command's exit code, which Ctrl-C can no longer change; after an error, do not wait for threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code:  # JAX would wait for other processes
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _is_unsafe(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in UNSAFE:
            return True
        frame = frame.f_back
    return False
