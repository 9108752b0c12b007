"""Run another library as a peer in benchmarks, in its own process; the two run in turns, never at once.

A peer is "timm", "timm:compile", "timm:compile:channels_last", or MODULE:FUNCTION, a function with the keywords

    training      whether to take train steps, or to predict
    batch_size    images in a step
    image_shape   (height, width, channels)
    num_classes   of the labels
    model         the fields of our model that JSON can hold, such as width and depth
    dtype         "float32" or "bfloat16", of its products
    platform      "cpu", "gpu" or "tpu"
    threads       processor cores to use

and returns a function of a number of steps, which returns when they are done. It may have an attribute `about`, a line
that describes it, and a method `memory()`, its peak bytes on the device. It must not fork. It starts as its users start
it, without the huge pages that we use, unless the environment sets them.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vit_jax.types import UserError
from vit_jax.xla_env import user_environment

TIMM = {
    "timm": "vit_jax.perf.timm_peer:eager",
    "timm:compile": "vit_jax.perf.timm_peer:compiled",
    "timm:compile:channels_last": "vit_jax.perf.timm_peer:compiled_channels_last",
}
# How torch threads wait for each other, unless the environment says otherwise. If other processes run too, spinning
# threads lose whole time slices: on two busy cores a step of a tiny ViT took 770 ms instead of 9.
WAITING = "passive"
# The folder that contains this package, so that the worker imports the same one.
ROOT = Path(__file__).resolve().parents[2]


def function_of(peer: str) -> str:
    """Return the MODULE:FUNCTION of a peer; raises UserError if it is unknown."""
    module, colon, name = peer.partition(":")
    if peer in TIMM:
        return TIMM[peer]
    if module == "timm" or not colon or not name.isidentifier() or not module.replace(".", "_").isidentifier():
        raise UserError(f"--peer={peer} is unknown; expected {', '.join(TIMM)}, or MODULE:FUNCTION of your own.")
    return peer


def cores() -> int:
    """Return the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Peer:
    """A peer, built and warmed up; called with a number of steps, it runs them and returns their seconds.

    about: its description. first_seconds: to build it and run its first step. memory: its peak bytes on the device,
    None if unknown. Raises UserError if it cannot be imported, fails, or is silent for `limit` seconds.
    """

    def __init__(self, name: str, limit: float | None = None, **arguments: Any):
        self.name, self.memory, self._limit = name, None, limit
        make = function_of(name)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Its answers are read unbuffered because `select` sees only the pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vit_jax.perf.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            env={"OMP_WAIT_POLICY": WAITING} | user_environment(os.environ) | {"PYTHONPATH": path},
        )
        try:
            facts = self._ask(json.dumps({"make": make, "arguments": arguments | {"threads": cores()}}))
        except BaseException:
            self.close()
            raise
        self.about, self.first_seconds = facts["about"], facts["first_seconds"]

    def __call__(self, steps: int) -> float:
        facts = self._ask(str(steps))
        self.memory = facts["memory"]
        return facts["seconds"]

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop its process and release its files."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self.end()
        self._process.wait()
        self._log.close()

    def end(self) -> None:
        """Kill its process, from any thread."""
        self._process.kill()

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(f"{line}\n".encode())
        except BrokenPipeError:
            raise UserError(f"--peer={self.name} has ended: {self._last_words()}") from None
        if not select.select([stdout], [], [], self._limit)[0]:
            raise UserError(f"--peer={self.name} gave no answer in {self._limit:.0f} s.")
        found = stdout.readline()
        facts = json.loads(found) if found.endswith(b"\n") else {"failed": self._last_words()}
        if "missing" in facts:
            needs = "timm and torch are needed" if self.name in TIMM else "it must be importable"
            raise UserError(f"--peer={self.name} is not installed here ({facts['missing']}); {needs}.")
        if "failed" in facts:
            raise UserError(f"--peer={self.name} failed: {facts['failed']}")
        return facts

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"
