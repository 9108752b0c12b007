"""Describe a job for a TPU slice: a commit, a command, and the gcloud calls that install and start it."""

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

from vit_jax.config.factory import first
from vit_jax.runs.launch import session
from vit_jax.runs.launch.gcloud import TpuSlice
from vit_jax.types import UserError

POLL = 30.0  # seconds between requests
# Extras in pyproject.toml for object stores.
STORE_EXTRAS = {"gcs": "gs://", "s3": "s3://"}


@dataclasses.dataclass(frozen=True)
class TpuJob:
    """A command to run at a commit of the repository `root`.

    variables: names of environment variables to pass on. download: (remote, local) path to copy at the end. keep: keep
    the slice at the end.
    """

    root: Path
    commit: str
    command: tuple[str, ...]
    variables: tuple[str, ...] = ()
    download: tuple[str, str] | None = None
    keep: bool = False

    @property
    def run_id(self) -> str:
        return session.run_id(self.commit, self.command)

    def bundle_command(self, tpu: TpuSlice) -> list[str]:
        """Return the command that packs the commit and its history into one file."""
        return ["git", "-C", str(self.root), "bundle", "create", "--quiet", str(staging(tpu) / session.BUNDLE), "HEAD"]

    def start_commands(self, tpu: TpuSlice) -> list[list[str]]:
        """Return the calls that create the folder on all workers, copy the code, install it and start the run."""
        names = [session.BUNDLE, *([session.VARIABLES] if self.variables else [])]
        words = [*self.command, *(os.environ.get(name, "") for name in self.variables)]
        extras = ["tpu", *(extra for extra, scheme in STORE_EXTRAS.items() if any(scheme in word for word in words))]
        return [
            tpu.ssh(session.folder_script()),
            tpu.upload([str(staging(tpu) / name) for name in names], session.FOLDER),
            tpu.ssh(session.install_script(self.commit, extras)),
            tpu.ssh(session.start_script(self.run_id, self.command)),
        ]

    def download_command(self, tpu: TpuSlice) -> list[str]:
        """Return the call that copies `download` from worker 0; relative remote paths start in the command's folder."""
        assert self.download is not None
        remote, local = self.download
        path = remote if remote.startswith(("/", "~")) else f"{session.FOLDER}/code/{remote}"
        return tpu.download(path, os.path.expanduser(local))


def staging(tpu: TpuSlice) -> Path:
    """Return the local folder for files to be uploaded."""
    return Path.home() / ".cache" / "vit_jax" / "launch" / tpu.name


def head_commit(committed: bool) -> tuple[Path, str]:
    """Return the root of the current repository and the commit at HEAD.

    Raises UserError if there are uncommitted changes, unless `committed` allows leaving them out.
    """
    try:
        root = Path(_git("rev-parse", "--show-toplevel"))
        commit = _git("rev-parse", "--verify", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{Path.cwd()} is not in a git repository with a commit. The workers install a commit, so launch from a clone."
        ) from None
    if _git("rev-parse", "--is-shallow-repository") == "true":
        raise UserError(f"{root} is a shallow clone, which cannot be sent; run: git fetch --unshallow")
    changes = _git("status", "--porcelain").splitlines()
    if changes and not committed:
        listed = "".join(f"\n  {line}" for line in first(changes))
        raise UserError(
            f"{root} has uncommitted changes:{listed}\nThe workers run HEAD. Commit the changes, add the files to "
            ".gitignore, or pass --committed to launch HEAD without them."
        )
    return root, commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.rstrip("\n")


def dry_run(tpu: TpuSlice, job: TpuJob) -> str:
    """Return the commands of a launch without failures, to paste into bash; values of variables are not included."""
    folder = shlex.quote(str(staging(tpu)))
    make_folder, upload, install, start = map(shlex.join, job.start_commands(tpu))
    lines = ["# Create the slice", shlex.join(tpu.create())]
    if tpu.queued:
        state = shlex.join([*tpu.describe(queue=True)[:-1], "--format=value(state.state)"])
        lines += [f'until [ "$({state})" = ACTIVE ]; do sleep {POLL:.0f}; done']
    lines += [f"# Install commit {job.commit} on all workers", make_folder, f"mkdir -p -m 700 {folder}"]
    lines += [shlex.join(job.bundle_command(tpu))]
    if job.variables:
        values = "; ".join(f"printf 'export {name}=%q\\n' \"${name}\"" for name in job.variables)
        lines += [f"(umask 077; {{ {values}; }} > {folder}/{session.VARIABLES})"]
    lines += [upload, f"rm -rf {folder}", install]
    lines += ["# Start the run on all workers, in a session that survives a broken connection", start]
    lines += [
        "# Follow the log of worker 0; repeat this to attach again",
        shlex.join(tpu.ssh(session.log_script(0), "0")),
    ]
    lines += ["# Print the exit code of each worker as the last word", shlex.join(tpu.ssh(session.status_script()))]
    if job.download:
        lines += ["# Fetch results", shlex.join(job.download_command(tpu))]
    if not job.keep:
        lines += ["# Delete the slice", shlex.join(tpu.delete())]
    return "\n".join(lines)


def detached_message(tpu: TpuSlice, command: str) -> str:
    """Explain how to attach to, stop or delete a run whose launcher was interrupted."""
    return (
        f"\nDetached: {tpu.name} keeps running and costing, but nothing restarts it after a preemption.\n"
        f"To attach again:\n  {command}\n"
        f"To save and stop the run:\n  {shlex.join(tpu.ssh(session.stop_script()))}\n"
        f"To delete the TPU:\n  {shlex.join(tpu.delete())}"
    )
