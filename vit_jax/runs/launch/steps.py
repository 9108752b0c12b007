"""What a launch does, as commands to copy and paste."""

import shlex

from vit_jax.runs.launch import session
from vit_jax.runs.launch.gcloud import Slice
from vit_jax.runs.launch.tpu import POLL, Job, fetch, local_folder, preparations


def steps(tpu: Slice, job: Job) -> str:
    """The commands of an undisturbed life, for bash; values of variables are not in them."""
    folder = shlex.quote(str(local_folder(tpu)))
    making, sending, setting, starting = (shlex.join(argv) for argv in preparations(tpu, job))
    lines = ["# Create it", shlex.join(tpu.create())]
    if tpu.queued:
        asking = shlex.join([*tpu.describe(queue=True)[:-1], "--format=value(state.state)"])
        lines += [f'until [ "$({asking})" = ACTIVE ]; do sleep {POLL:.0f}; done']
    lines += [f"# Set up commit {job.code.commit} on all workers", making, f"mkdir -p -m 700 {folder}"]
    lines += [shlex.join(job.code.bundle(local_folder(tpu) / session.BUNDLE))]
    if job.variables:
        values = "; ".join(f"printf 'export {name}=%q\\n' \"${name}\"" for name in job.variables)
        lines += [f"(umask 077; {{ {values}; }} > {folder}/{session.VARIABLES})"]
    lines += [
        sending,
        f"rm -rf {folder}",
        setting,
        "# Run it on all workers, in a session that goes on without a connection",
    ]
    lines += [
        starting,
        "# Its log on worker 0 until it ends; also to attach again",
        shlex.join(tpu.ssh(session.log(0), "0")),
    ]
    lines += ["# How it ended on each worker: the last word is the exit code", shlex.join(tpu.ssh(session.tell()))]
    if job.fetch:
        lines += ["# Fetch", shlex.join(fetch(tpu, *job.fetch))]
    if not job.keep:
        lines += ["# Delete it", shlex.join(tpu.delete())]
    return "\n".join(lines)


def detached(tpu: Slice, again: str) -> str:
    """What to do about a run that goes on without its launcher."""
    return (
        f"\nDetached: what was begun on {tpu.name} goes on, and costs, but nobody begins it again after a preemption.\n"
        f"To attach again:\n  {again}\n"
        f"To stop the run, which saves first:\n  {shlex.join(tpu.ssh(session.stop()))}\n"
        f"To delete the TPU:\n  {shlex.join(tpu.delete())}"
    )
