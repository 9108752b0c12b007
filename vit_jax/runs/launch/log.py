"""The log of worker 0 as it grows, over connections that may be lost."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import BinaryIO

from vit_jax.runs.launch.gcloud import Slice
from vit_jax.runs.launch.session import MARK, log
from vit_jax.xla_env import given

GRACE = 10.0  # seconds for the end of what was sent, once the connection is closed


class Log:
    """Prints a log once from its begin to its end; `seen` is how many of its bytes were printed."""

    def __init__(self, tpu: Slice):
        self._tpu = tpu
        self.seen = 0

    def follow(self, go_on: Callable[[], bool], seconds: float) -> bool:
        """Prints what comes until the run ends, the connection is lost or `go_on`, asked every so often, says no.

        Whether it came to the end of the log.
        """
        # A process group of its own, for gcloud starts ssh.
        process = subprocess.Popen(
            self._tpu.ssh(log(self.seen), worker="0"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=given(os.environ),
            start_new_session=True,
        )
        assert process.stdout is not None
        ended = False
        try:
            reader = threading.Thread(target=self._print, args=(process.stdout, self.seen), daemon=True)
            reader.start()
            while not ended and go_on():
                reader.join(seconds)
                ended = not reader.is_alive()
        finally:
            if not ended:
                os.killpg(process.pid, signal.SIGTERM)
            code = process.wait()
            reader.join(GRACE)
            if not reader.is_alive():
                process.stdout.close()
        return code == 0

    def _print(self, lines: BinaryIO, begin: int) -> None:
        for text in unseen(lines, begin, lambda: self.seen):
            self.seen += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()


def unseen(lines: Iterable[bytes], begin: int, seen: Callable[[], int]) -> Iterable[bytes]:
    """What is new in the lines of connections, which all tell of a log from the same position on.

    gcloud connects again by itself with the same command: then what was seen comes again, after another MARK.
    """
    position = begin
    for line in lines:
        before, mark, after = line.partition(MARK)
        for text in (before, after):
            new = text[max(seen() - position, 0) :]
            position += len(text)
            if new:
                yield new
            if mark and text is before:
                position = begin
