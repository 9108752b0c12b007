"""Run a command on rented machines: vit launch tpu|slurm ... -- COMMAND.

tpu: creates a TPU slice, installs this commit on all workers, runs the command, restarts it after a preemption, and deletes the
slice. slurm: writes an sbatch script for GPU nodes and submits it.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from vit_jax.cli.command import Parser, number_flag, path_flag
from vit_jax.types import Count, Threads, Units, UserError

EXAMPLES = {
    "tpu": """
vit launch tpu --name=vit --zone=us-west4-a --type=v5litepod-64 --spot -- \\
  vit train --config=configs/vit_s16_i1k.py --workdir=gs://BUCKET/vit
""",
    "slurm": """
vit launch slurm --nodes=2 --gpus=8 --cpus=16 --time=24:00:00 -- \\
  vit train --config=configs/vit_s16_i1k.py --workdir=/shared/vit
""",
}


def main(argv: Sequence[str]) -> int:
    """Launch the command after -- and return its exit code."""
    target = argv[0] if argv else ""
    if target in ("-h", "--help"):
        print(__doc__, "\nvit launch tpu --help and vit launch slurm --help list the flags.")
        return 0
    if target not in ("tpu", "slurm"):
        raise UserError(f"Found {target or 'nothing'} after launch; expected tpu or slurm. See --help.")
    words, command = list(argv[1:]), []
    if "--" in words:
        command = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
    flags = (tpu_parser if target == "tpu" else slurm_parser)().parse(words)

    from vit_jax.runs.launch.subprocesses import check_command, check_variables

    check_command(command)
    check_variables(getattr(flags, "env", []))
    if target == "slurm":
        return launch_slurm(flags, command)
    return launch_tpu(flags, command, ["python", "-m", "vit_jax", "launch", *argv])


def new_parser(target: str, description: str) -> Parser:
    """Return a parser without flags."""
    return Parser(
        prog=f"vit launch {target}",
        usage=f"vit launch {target} [flags] -- COMMAND",
        description=description,
        examples=EXAMPLES[target],
        allow_abbrev=False,
    )


def tpu_parser() -> Parser:
    """Return the parser of `launch tpu`."""
    parser = new_parser(
        "tpu", "Run COMMAND at this commit on all workers of a TPU slice; a workdir on gs:// outlives the slice."
    )
    add = parser.add_argument
    add("--name", required=True, help="name of the slice; the same command with the same name attaches to it")
    add("--zone", required=True, help="such as us-west4-a")
    add("--type", required=True, help="generation and size, such as v5litepod-64")
    add("--project", help="Google Cloud project; default: gcloud's")
    add("--version", default="", help="TPU software version; default: chosen by --type")
    add(
        "--spot", action="store_true", help="cheaper; after a preemption the slice is created again and the run resumes"
    )
    add("--queued", action="store_true", help="request the slice through a queued resource, and wait for it")
    add("--env", action="append", default=[], metavar="NAME", help="pass on a variable such as WANDB_API_KEY, unseen")
    add("--fetch", metavar="REMOTE:LOCAL", help="at the end, copy this path of worker 0 to this machine")
    add("--keep", action="store_true", help="do not delete the slice at the end")
    add("--committed", action="store_true", help="launch HEAD without uncommitted changes")
    add("--dry-run", action="store_true", help="print the commands and exit")
    return parser


def launch_tpu(flags: argparse.Namespace, command: list[str], again: list[str]) -> int:
    """Create the slice, run the command and return its exit code; `again` is the command line that attaches to it."""
    from vit_jax.runs.launch.gcloud import TpuSlice
    from vit_jax.runs.launch.subprocesses import require_program
    from vit_jax.runs.launch.tpu import run_job
    from vit_jax.runs.launch.tpu_job import TpuJob, detached_message, dry_run, head_commit

    tpu = TpuSlice(flags.name, flags.zone, flags.type, flags.version, flags.project, flags.spot, flags.queued)
    download = None
    if flags.fetch is not None:
        remote, _, local = flags.fetch.rpartition(":")
        if not remote or not local:
            raise UserError(f"--fetch={flags.fetch}: expected REMOTE:LOCAL, such as workdirs/run:workdirs/.")
        download = (remote, local)
    job = TpuJob(*head_commit(flags.committed), tuple(command), tuple(flags.env), download, flags.keep)
    if flags.spot and "://" not in " ".join(command):
        print(
            "note: the command has no gs:// path; files on a spot slice are lost at a preemption, and the run starts over",
            file=sys.stderr,
        )
    if flags.dry_run:
        print(dry_run(tpu, job))
        return 0
    require_program(
        "gcloud", "install the Google Cloud CLI (cloud.google.com/sdk/docs/install) and run: gcloud auth login"
    )
    try:
        return run_job(tpu, job)
    except KeyboardInterrupt:
        print(detached_message(tpu, shlex.join(again)), file=sys.stderr)
        return 130


def slurm_parser() -> Parser:
    """Return the parser of `launch slurm`."""
    parser = new_parser("slurm", "Run COMMAND in this folder on nodes of a Slurm cluster, one process per GPU.")
    add = parser.add_argument
    add("--name", default="vit_jax", help="name of the job, its script and its log; default vit_jax")
    add("--nodes", type=number_flag(Units), default=1, help="default 1")
    add("--gpus", type=number_flag(Threads), default=1, help="GPUs per node; default 1, and 0 for CPU nodes")
    add("--time", help="time limit, such as 24:00:00; before it the run saves, and the job is requeued to resume")
    add("--partition", help="partition of the cluster")
    add("--account", help="account to charge")
    add("--cpus", type=number_flag(Count), help="cores per process; default: Slurm's, often 1")
    add("--mem", help="memory per node, such as 200G")
    add(
        "--sbatch", action="append", default=[], metavar="FLAG", help="another sbatch flag, such as --sbatch=--qos=high"
    )
    add(
        "--out",
        type=path_flag,
        default="workdirs/slurm",
        metavar="DIR",
        help="folder of script and log, on a shared file system",
    )
    add("--dry-run", action="store_true", help="print the script and exit")
    return parser


def launch_slurm(flags: argparse.Namespace, command: list[str]) -> int:
    """Write the sbatch script and submit it."""
    from pathlib import Path

    from vit_jax.runs.launch.slurm import SlurmJob, sbatch_script, write_script
    from vit_jax.runs.launch.subprocesses import require_program, run_command

    for flag in flags.sbatch:
        if not flag.startswith("--"):
            raise UserError(f"--sbatch={flag}: expected a flag of sbatch, such as --sbatch=--qos=high.")
    job = SlurmJob(
        name=flags.name,
        nodes=flags.nodes,
        gpus=flags.gpus,
        time=flags.time,
        partition=flags.partition,
        account=flags.account,
        cpus=flags.cpus,
        memory=flags.mem,
        sbatch_flags=tuple(flags.sbatch),
    )
    out = Path(flags.out).absolute()
    text = sbatch_script(job, command, out)
    if flags.dry_run:
        print(text, end="")
        return 0
    require_program("sbatch", "launch from a login node of the cluster")
    path = out / f"{job.name}.sbatch"
    write_script(path, text)
    output = run_command(["sbatch", str(path)]).strip()
    print(output)
    job_id = output.split()[-1] if output else ""
    print(f"log: {out / f'{job.name}-{job_id}.log'}\nto cancel: scancel {job_id}")
    return 0
