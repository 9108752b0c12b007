"""Write an sbatch script that runs a command on the nodes of a Slurm cluster."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_jax.types import UserError

NOTICE = 120  # seconds before the time limit at which the run receives SIGTERM
# A run that receives SIGTERM saves and exits with 0. At the time limit Slurm signals the script, which forwards the signal and
# requeues the job. When Slurm itself signals the run (preemption or scancel), the script waits for Slurm to end it.
SCRIPT = """#!/bin/bash
{options}
set -u
cd {folder}
export PATH={python}:$PATH PYTHONUNBUFFERED=1
terminated={out}/{name}-$SLURM_JOB_ID.terminated
rm -f "$terminated"
limit=
trap 'limit=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
export terminated
srun --kill-on-bad-exit=1 bash -c {task} &
run=$!
wait $run
while kill -0 $run 2>/dev/null; do wait $run; done
wait $run
code=$?
if [ -n "$limit" ] && [ -e "$terminated" ]; then
  rm -f "$terminated"
  scontrol requeue "$SLURM_JOB_ID"
elif [ -e "$terminated" ]; then
  rm -f "$terminated"
  echo "terminated: waiting for Slurm to release the nodes"
  sleep 600
fi
exit "$code"
"""
TASK = """trap 'touch "$terminated"' TERM
{command}
exit $?"""


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """Resources of a job: `nodes` with `gpus` each, one process per GPU; `sbatch_flags` are passed on."""

    name: str
    nodes: int = 1
    gpus: int = 1
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    cpus: int | None = None
    memory: str | None = None
    sbatch_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UserError(
                f"--name={self.name}: expected letters, digits, ., _ and -, starting with a letter or digit."
            )
        if self.nodes < 1 or self.gpus < 0 or (self.cpus is not None and self.cpus < 1):
            raise UserError(
                f"--nodes={self.nodes} --gpus={self.gpus} --cpus={self.cpus}: expected nodes >= 1, gpus >= 0 and cpus >= 1."
            )
        if self.time and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise UserError(f"--time={self.time}: expected minutes, HH:MM:SS or DAYS-HH:MM:SS.")
        for word in (self.partition, self.account, self.memory, *self.sbatch_flags):
            if word is not None and ("\n" in word or not word):
                raise UserError(f"Found {word!r} as the value of an sbatch flag; expected one non-empty line.")

    def options(self, out: Path) -> list[str]:
        """Return the flags of sbatch."""
        wanted = {
            "job-name": self.name,
            "nodes": self.nodes,
            # JAX uses one GPU per process that srun starts, by its local id on the node.
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
        return [*flags, "--requeue", *self.sbatch_flags]


def sbatch_script(job: SlurmJob, command: Sequence[str], out: Path) -> str:
    """Return a script that runs the command in the current folder with the current Python first on PATH."""
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {_option(flag)}" for flag in job.options(out)),
        folder=shlex.quote(str(Path.cwd())),
        python=shlex.quote(str(Path(sys.executable).parent)),
        out=shlex.quote(str(out)),
        name=job.name,
        task=shlex.quote(TASK.format(command=shlex.join(command))),
    )


def write_script(path: Path, text: str) -> None:
    """Write the script; raises UserError if the file exists with other contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != text:
        raise UserError(f"{path} already exists with other contents; use another --name or --out, or delete it.")
    path.write_text(text)


def _option(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return f"{name}{equals}{shlex.quote(value)}" if equals else flag
