"""Commands in processes of their own, forked from one that has imported everything, which takes longer than they do.

Where the process is the subject of a test, it starts one as a user does.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNCHANGED = dict(os.environ)  # by any test


class Forked:
    """The process of a command, given as to `vit`, in an environment of its own."""

    def __init__(self, argv: list[str], environment: dict[str, str]):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._output = Path(file.name)
        self.pid = _ask({"argv": [str(word) for word in argv], "environment": environment, "output": file.name})

    def wait(self) -> str:
        """Wait for its end and return its stdout and stderr together; `returncode` is then its exit code."""
        self.returncode = _ask({"wait": self.pid})
        output = self._output.read_text()
        self._output.unlink()
        return output


def _ask(request: dict) -> int:
    server = _server()
    print(json.dumps(request), file=server.stdin, flush=True)
    return int(server.stdout.readline())


@functools.cache
def _server() -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.forked"]
    return subprocess.Popen(command, cwd=ROOT, env=UNCHANGED, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Fork a process for every request, or wait for one to end, until there are no more requests."""
    from sklearn import datasets, model_selection  # noqa: F401  # which the digits need

    from vit_jax import __main__ as commands
    from vit_jax import interrupts
    from vit_jax.train import fit
    from vit_jax.xla_env import missing_variables

    fit.write_report = lambda *_: None
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            os.environ.clear()
            os.environ.update(request["environment"])
            os.environ.update(missing_variables(os.environ))
            output = os.open(request["output"], os.O_WRONLY)
            for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
                os.dup2(file, number)
            interrupts.leave(commands.main(request["argv"]))
        print(answer, flush=True)


if __name__ == "__main__":
    serve()
