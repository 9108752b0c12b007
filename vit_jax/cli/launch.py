"""Run on rented machines: vit launch tpu|slurm ... -- COMMAND.

tpu: creates a TPU slice, sets up this commit on all workers, runs the command there, begins again after a preemption, and
deletes the slice. slurm: writes an sbatch script for GPU nodes and submits it.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from vit_jax.cli.command import Parser
from vit_jax.types import UserError


def main(argv: Sequence[str]) -> int:
    """Launches the command behind --; the exit code is the run's."""
    place = argv[0] if argv else ""
    if place in ("-h", "--help"):
        print(__doc__, "\nvit launch tpu --help and vit launch slurm --help list the flags.")
        return 0
    if place not in ("tpu", "slurm"):
        raise UserError(f"Found {place or 'nothing'} after launch; expected tpu or slurm. See --help.")
    words, command = list(argv[1:]), []
    if "--" in words:
        command = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
    flags = (tpu_flags if place == "tpu" else slurm_flags)().parse(words)

    from vit_jax.runs.launch.calls import check_command, check_variables

    check_command(command)
    check_variables(getattr(flags, "env", []))
    if place == "slurm":
        return launch_slurm(flags, command)
    return launch_tpu(flags, command, ["python", "-m", "vit_jax", "launch", *argv])


def parser_of(place: str, what: str) -> Parser:
    """An empty parser of one kind of machine."""
    return Parser(
        prog=f"vit launch {place}",
        usage=f"vit launch {place} [flags] -- COMMAND",
        description=what,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def tpu_flags() -> Parser:
    """The flags of `tpu`."""
    parser = parser_of(
        "tpu", "Runs COMMAND at this commit on all workers of a TPU slice; a workdir in gs:// outlives it."
    )
    add = parser.add_argument
    add("--name", required=True, help="of the slice; the same command with the same name attaches to it")
    add("--zone", required=True, help="such as us-west4-a")
    add("--type", required=True, help="generation and size, such as v5litepod-64")
    add("--project", help="of Google Cloud; default gcloud's own")
    add("--version", default="", help="of the TPU software; default by the type")
    add(
        "--spot",
        action="store_true",
        help="cheaper, and may be taken away: then it is created again, and the run resumes",
    )
    add("--queued", action="store_true", help="ask for it through a queued resource, and wait")
    add("--env", action="append", default=[], metavar="NAME", help="pass this variable on, unseen, as WANDB_API_KEY")
    add("--fetch", metavar="REMOTE:LOCAL", help="copy this path of worker 0 here at the end")
    add("--keep", action="store_true", help="do not delete the slice at the end")
    add("--committed", action="store_true", help="launch HEAD though there are changes, without them")
    add("--dry-run", action="store_true", help="print the commands and do nothing")
    return parser


def launch_tpu(flags: argparse.Namespace, command: list[str], again: list[str]) -> int:
    """See the module's docstring."""
    from vit_jax.runs.launch.bundle import code
    from vit_jax.runs.launch.calls import find
    from vit_jax.runs.launch.gcloud import Slice
    from vit_jax.runs.launch.steps import detached, steps
    from vit_jax.runs.launch.tpu import Job, launch

    tpu = Slice(flags.name, flags.zone, flags.type, flags.version, flags.project, flags.spot, flags.queued)
    fetch = None
    if flags.fetch is not None:
        remote, _, local = flags.fetch.rpartition(":")
        if not remote or not local:
            raise UserError(f"--fetch={flags.fetch}; expected REMOTE:LOCAL, such as workdirs/run:workdirs/.")
        fetch = (remote, local)
    job = Job(code(flags.committed), tuple(command), tuple(flags.env), fetch, flags.keep)
    if flags.spot and "://" not in " ".join(command):
        print(
            "note: no gs:// in the command; what lies on a spot slice is lost with it, and a run begins from its start",
            file=sys.stderr,
        )
    if flags.dry_run:
        print(steps(tpu, job))
        return 0
    find("gcloud", "install the Google Cloud CLI (cloud.google.com/sdk/docs/install) and run: gcloud auth login")
    try:
        return launch(tpu, job)
    except KeyboardInterrupt:
        print(detached(tpu, shlex.join(again)), file=sys.stderr)
        return 130


def slurm_flags() -> Parser:
    """The flags of `slurm`."""
    parser = parser_of("slurm", "Runs COMMAND in this folder on nodes of a Slurm cluster, one process for each GPU.")
    add = parser.add_argument
    add("--name", default="vit_jax", help="of the job, its script and its log; default vit_jax")
    add("--nodes", type=int, default=1, help="default 1")
    add("--gpus", type=int, default=1, help="on each node; default 1, and 0 for nodes without")
    add("--time", help="limit, such as 24:00:00; the run saves before it and goes on in another turn")
    add("--partition", help="of the cluster")
    add("--account", help="that pays")
    add("--cpus", type=int, help="cores for each process; default Slurm's, often 1")
    add("--mem", help="memory of each node, such as 200G")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="FLAG",
        help="another flag of sbatch, such as --sbatch=--qos=high",
    )
    add(
        "--out",
        default="workdirs/slurm",
        metavar="DIR",
        help="of script and log, seen by all nodes; default workdirs/slurm",
    )
    add("--dry-run", action="store_true", help="print the script and do nothing")
    return parser


def launch_slurm(flags: argparse.Namespace, command: list[str]) -> int:
    """See the module's docstring."""
    from pathlib import Path

    from vit_jax.runs.launch import slurm
    from vit_jax.runs.launch.calls import call, find

    for flag in flags.sbatch:
        if not flag.startswith("--"):
            raise UserError(f"--sbatch={flag}; expected a flag of sbatch, such as --sbatch=--qos=high.")
    nodes = slurm.Nodes(
        flags.name,
        flags.nodes,
        flags.gpus,
        flags.time,
        flags.partition,
        flags.account,
        flags.cpus,
        flags.mem,
        tuple(flags.sbatch),
    )
    out = Path(flags.out).expanduser().absolute()
    text = slurm.script(nodes, command, out)
    if flags.dry_run:
        print(text, end="")
        return 0
    find("sbatch", "launch from a login node of the cluster")
    path = out / f"{nodes.name}.sbatch"
    slurm.write(path, text)
    said = call(["sbatch", str(path)]).strip()
    print(said)
    number = said.split()[-1] if said else ""
    print(f"log: {out / f'{nodes.name}-{number}.log'}\nto end it: scancel {number}")
    return 0
