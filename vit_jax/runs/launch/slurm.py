"""A run on nodes of a Slurm cluster, as a script for sbatch."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_jax.types import UserError

NOTICE = 120  # seconds before the time limit at which the run is told to save
# A run that was told to end says 0 for having saved. Slurm tells the script of the time limit, and the script asks for another
# turn; where Slurm tells the run (a preemption, or scancel), Slurm decides what follows, and the script only waits for it.
SCRIPT = """#!/bin/bash
{options}
set -u
cd {folder}
export PATH={python}:$PATH PYTHONUNBUFFERED=1
told={out}/{name}-$SLURM_JOB_ID.told
rm -f "$told"
limit=
trap 'limit=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
export told
srun --kill-on-bad-exit=1 bash -c {task} &
run=$!
wait $run
while kill -0 $run 2>/dev/null; do wait $run; done
wait $run
code=$?
if [ -n "$limit" ] && [ -e "$told" ]; then
  rm -f "$told"
  scontrol requeue "$SLURM_JOB_ID"
elif [ -e "$told" ]; then
  rm -f "$told"
  echo "told to end: waiting for Slurm to take the nodes"
  sleep 600
fi
exit "$code"
"""
TASK = """trap 'touch "$told"' TERM
{command}
exit $?"""


@dataclasses.dataclass(frozen=True)
class Nodes:
    """What is asked of Slurm: `gpus` on each of the nodes, with one process for each of them; `more` are flags of sbatch."""

    name: str
    nodes: int = 1
    gpus: int = 1
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    cpus: int | None = None
    memory: str | None = None
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UserError(f"--name={self.name}; expected letters, digits, ., _ and -, first a letter or digit.")
        if self.nodes < 1 or self.gpus < 0 or (self.cpus is not None and self.cpus < 1):
            raise UserError(
                f"--nodes={self.nodes} --gpus={self.gpus} --cpus={self.cpus}; expected at least 1 node, no negative number."
            )
        if self.time and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise UserError(f"--time={self.time}; expected minutes, HH:MM:SS or DAYS-HH:MM:SS.")
        for word in (self.partition, self.account, self.memory, *self.more):
            if word is not None and ("\n" in word or not word):
                raise UserError(f"Found {word!r}; expected one line for a flag of sbatch.")

    def options(self, out: Path) -> list[str]:
        """The flags of sbatch."""
        wanted = {
            "job-name": self.name,
            "nodes": self.nodes,
            # JAX takes one GPU for each process that srun starts, by its number on the node.
            "ntasks-per-node": max(self.gpus, 1),
            "gpus-per-node": self.gpus or None,
            "cpus-per-task": self.cpus,
            "mem": self.memory,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "output": str(out / f"{self.name}-%j.log"),
            "open-mode": "append",
            "signal": f"B:USR1@{NOTICE}",
        }
        flags = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
        return [*flags, "--requeue", *self.more]


def script(nodes: Nodes, command: Sequence[str], out: Path) -> str:
    """The text of the script, which runs the command in this folder with this Python first on PATH."""
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {_option(flag)}" for flag in nodes.options(out)),
        folder=shlex.quote(str(Path.cwd())),
        python=shlex.quote(str(Path(sys.executable).parent)),
        out=shlex.quote(str(out)),
        name=nodes.name,
        task=shlex.quote(TASK.format(command=shlex.join(command))),
    )


def write(path: Path, text: str) -> None:
    """Writes the script; raises UserError where another one has the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != text:
        raise UserError(f"{path} is there already with other contents; use another --name or --out, or delete it.")
    path.write_text(text)


def _option(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return f"{name}{equals}{shlex.quote(value)}" if equals else flag
