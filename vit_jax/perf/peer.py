"""Another library beside ours: in a process of its own, which waits while ours runs, and so the other way round.

A peer is "timm", "timm:compile", "timm:compile:channels_last", or MODULE:FUNCTION, a function that is given by keyword

    training      whether to take train steps, or to predict
    batch_size    images in a step
    image_shape   (height, width, channels)
    num_classes   of the labels
    model         the fields of our model, such as width and depth, those that JSON can hold
    dtype         "float32" or "bfloat16", in which it is to multiply
    platform      "cpu", "gpu" or "tpu"
    threads       processor cores to use

and returns a function of a number of steps, which takes so many and returns when they are done. That may have an attribute
`about`, a line on what it is, and a method `memory()`, the most bytes of the device that it held. It must not fork. It starts
as its own users start it, without the huge pages that ours asks for unless the environment asks for them.
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
# How threads of torch wait for each other, unless the environment says otherwise. Where other processes run too, threads that
# spin lose whole time slices: on two busy cores a step of a tiny ViT took 770 ms in place of 9.
WAITING = "passive"
# Where this package lies, so that the worker finds the same.
ROOT = Path(__file__).resolve().parents[2]


def function_of(peer: str) -> str:
    """MODULE:FUNCTION of a peer; raises UserError where it names none."""
    module, colon, name = peer.partition(":")
    if peer in TIMM:
        return TIMM[peer]
    if module == "timm" or not colon or not name.isidentifier() or not module.replace(".", "_").isidentifier():
        raise UserError(f"--peer={peer} is unknown; expected {', '.join(TIMM)}, or MODULE:FUNCTION of your own.")
    return peer


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Peer:
    """A peer, made and warmed up; called with a number of steps, it takes them and gives their seconds.

    about: what it is. first_seconds: to make it and take its first step. memory: the most bytes it held on the device, None
    where it does not tell. Raises UserError where it cannot be imported, fails, or is silent for `limit` seconds.
    """

    def __init__(self, name: str, limit: float | None = None, **arguments: Any):
        self.name, self.memory, self._limit = name, None, limit
        make = function_of(name)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Its answers are read unbuffered, as `select` sees the pipe alone.
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
        """Ends its process and what belongs to it."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self.end()
        self._process.wait()
        self._log.close()

    def end(self) -> None:
        """Kills its process, from any thread."""
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
