"""Follow the log of worker 0 over connections that may break."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import BinaryIO

from vit_jax.runs.launch.gcloud import TpuSlice
from vit_jax.runs.launch.session import CONNECTED, log_script
from vit_jax.xla_env import user_environment

DRAIN_SECONDS = 10.0  # to read buffered output after the connection closes


class LogTail:
    """Print each byte of a log once; `printed` counts the bytes printed so far."""

    def __init__(self, tpu: TpuSlice):
        self._tpu = tpu
        self.printed = 0

    def follow(self, keep_going: Callable[[], bool], seconds: float) -> bool:
        """Print new output until the run ends, the connection breaks or `keep_going()`, polled every `seconds`, is false.

        Returns whether the end of the log was reached.
        """
        # gcloud starts ssh, so both go into a process group that can be signalled as one.
        process = subprocess.Popen(
            self._tpu.ssh(log_script(self.printed), worker="0"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=user_environment(os.environ),
            start_new_session=True,
        )
        assert process.stdout is not None
        ended = False
        reader = threading.Thread(target=self._print, args=(process.stdout, self.printed), daemon=True)
        try:
            reader.start()
            while not ended and keep_going():
                reader.join(seconds)
                ended = not reader.is_alive()
        finally:
            if not ended:
                os.killpg(process.pid, signal.SIGTERM)
            code = process.wait()
            if reader.is_alive():  # not after Ctrl-C during its start
                reader.join(DRAIN_SECONDS)
            if not reader.is_alive():
                process.stdout.close()
        return code == 0

    def _print(self, lines: BinaryIO, start: int) -> None:
        for text in new_output(lines, start, lambda: self.printed):
            self.printed += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()


def new_output(lines: Iterable[bytes], start: int, printed: Callable[[], int]) -> Iterable[bytes]:
    """Yield the output that has not been printed yet.

    When gcloud reconnects, it repeats its command: the log then starts again at `start`, after another CONNECTED marker.
    """
    position = start
    for line in lines:
        before, marker, after = line.partition(CONNECTED)
        for text in (before, after):
            new = text[max(printed() - position, 0) :]
            position += len(text)
            if new:
                yield new
            if marker and text is before:
                position = start
