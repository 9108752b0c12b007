"""The life of a run on a TPU slice: created, set up, run, begun again after a preemption, fetched, deleted."""

import dataclasses
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from vit_jax.runs.launch import session
from vit_jax.runs.launch.bundle import Code
from vit_jax.runs.launch.calls import Failed, call
from vit_jax.runs.launch.gcloud import Slice
from vit_jax.runs.launch.log import Log
from vit_jax.types import UserError

POLL = 30.0  # seconds between questions
TRIES = 4  # of what fails though the slice is there: a new machine may not let anyone in yet
PATIENCE = 120  # tries of what fails once the run goes on without us
LOG_LINES = 30  # of a worker that failed
TAKEN = ("PREEMPTED", "TERMINATED")
IDLE = ("STOPPED", "HIDDEN", "UNKNOWN")
NO_KEY = "not present in the SSH agent"  # what gcloud says of it, with the remedy, where a slice has several workers
NO_ROOM = ("no more capacity", "insufficient capacity", "stockout")


class Gone(Exception):
    """The slice is not there, or not the run on it; both are made again."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What runs on a slice: a command in a commit, with variables of this environment; `fetch` is (remote, local)."""

    code: Code
    command: tuple[str, ...]
    variables: tuple[str, ...] = ()
    fetch: tuple[str, str] | None = None
    keep: bool = False

    @property
    def identity(self) -> str:
        """Names the run on the workers."""
        return session.identity(self.code.commit, self.command)

    @property
    def extras(self) -> list[str]:
        """What of pyproject.toml is installed on the workers."""
        stores = {"gcs": "gs://", "s3": "s3://"}
        words = [*self.command, *(os.environ.get(name, "") for name in self.variables)]
        return ["tpu", *(extra for extra, scheme in stores.items() if any(scheme in word for word in words))]


def launch(tpu: Slice, job: Job) -> int:
    """Runs the job to its end and returns its exit code; one that runs already, or has ended, is taken up where it is.

    Raises UserError where it cannot go on; then the slice may be left, and the message says so.
    """
    log, known = Log(tpu), False
    try:
        while True:
            workers = make_ready(tpu)
            try:
                code = run(tpu, job, workers, log, known)
                if job.fetch:
                    say(f"fetching {job.fetch[0]} into {job.fetch[1]}")
                    Path(job.fetch[1]).expanduser().parent.mkdir(parents=True, exist_ok=True)
                    ask(tpu, fetch(tpu, *job.fetch))
                break
            except Gone as gone:
                say(f"{gone}; taking it up again")
                known = True
                time.sleep(POLL)
        if not job.keep:
            delete(tpu)
    except UserError as error:
        raise UserError(
            f"{error}\n{tpu.name} may be left, and cost; to delete it:\n  {shlex.join(tpu.delete())}"
        ) from None
    return code


def make_ready(tpu: Slice) -> int:
    """Creates the slice where it is not there, waits until it is ready, and returns its number of workers."""
    asked, before = False, ""
    while True:
        request = look(tpu, queue=True) if tpu.queued else None
        node = look(tpu)
        waits = request["state"]["state"] if request else "ABSENT"
        state = node["state"] if node else waits
        if state != before:
            say(f"{tpu.name} is {state}")
            before = state
        if state == "READY" and node:
            if node.get("acceleratorType", tpu.type) != tpu.type:
                raise UserError(
                    f"Found {tpu.name} as {node['acceleratorType']}, expected {tpu.type}; use another --name."
                )
            return len(node.get("networkEndpoints", [0])) // max(1, len(node.get("networkConfigs", [])))
        if state == "FAILED" and asked and request:
            failed = request["state"].get("failedData", {}).get("error", {}).get("message", "no reason given")
            raise UserError(f"The queued resource {tpu.name} has failed: {failed}")
        if state in IDLE:
            raise UserError(f"{tpu.name} is {state}; start it (gcloud compute tpus tpu-vm start) or delete it.")
        # ACTIVE without a slice: someone deleted the slice alone.
        if state in TAKEN or (node is None and waits in ("FAILED", "SUSPENDED", "ACTIVE")):
            delete(tpu)
        elif state == "ABSENT":
            asked = create(tpu)
        else:
            time.sleep(POLL)


def create(tpu: Slice) -> bool:
    """Asks for the slice once; whether it was accepted, and not refused for want of room."""
    say(f"creating {tpu.name}: {tpu.type}{', spot' if tpu.spot else ''}")
    try:
        call(tpu.create())
    except Failed as failed:
        if not any(sign in failed.said.lower() for sign in NO_ROOM):
            raise
        say(f"no room for {tpu.type} in {tpu.zone} now; trying again")
        time.sleep(POLL)
        return False
    return True


def delete(tpu: Slice) -> None:
    """Gives the slice back, unless it is gone by itself."""
    say(f"deleting {tpu.name}")
    try:
        call(tpu.delete())
    except Failed:
        if look(tpu) is not None or (tpu.queued and look(tpu, queue=True) is not None):
            raise


def run(tpu: Slice, job: Job, workers: int, log: Log, known: bool) -> int:
    """The exit code of the run on a slice that is ready, started where it does not run; `known` one that failed counts.

    Raises Gone where the slice or the run is lost, UserError where another run is there or someone stopped this one.
    """
    found = session.told(ask(tpu, tpu.ssh(session.tell())))
    others = {run for _, run, state in found if state == "running" and run != job.identity}
    if others:
        raise UserError(
            f"{tpu.name} runs another command or commit; use another --name, or stop that run first:\n"
            f"  {shlex.join(tpu.ssh(session.stop()))}"
        )
    states = [state for _, run, state in found if run == job.identity]
    if not states:
        log.seen = 0
    alive = [state == "running" or (state.isdecimal() and (known or state == "0")) for state in states]
    if len(states) == workers and all(alive):
        say(f"the run is there already: {', '.join(sorted(set(states)))}")
    else:
        say(f"setting up commit {job.code.commit[:12]} on {workers} workers")
        set_up(tpu, job)
        say("running")
    while True:
        whole = log.follow(lambda: (look(tpu, tries=PATIENCE) or {}).get("state") == "READY", POLL)
        found = session.told(ask(tpu, tpu.ssh(session.tell())))
        code = outcome(tpu, found, workers)
        if code is not None and not whole:  # it ended while the connection was lost
            log.follow(lambda: True, POLL)
        if code is not None:
            return code
        time.sleep(POLL)


def outcome(tpu: Slice, found: list[tuple[str, str, str]], workers: int) -> int | None:
    """The exit code of a run by what its workers tell, None while it goes on; raises as `run` does."""
    states = [state for *_, state in found]
    if "stopped" in states:
        raise UserError(f"The run on {tpu.name} was stopped; the same command starts it again.")
    if "lost" in states or "none" in states or len(states) < workers:
        raise Gone(f"the run on {tpu.name} is lost")
    failed = {host: int(state) for host, _, state in found if state not in ("running", "0")}
    if failed:
        if "running" in states:  # the others wait for it in vain
            ask(tpu, tpu.ssh(session.stop()))
        time.sleep(POLL)
        # It may have failed since machines were taken away, which shows later.
        later = [state for *_, state in session.told(ask(tpu, tpu.ssh(session.tell())))]
        if "lost" in later or (look(tpu, tries=PATIENCE) or {}).get("state") != "READY":
            raise Gone(f"the run on {tpu.name} is lost")
        for host, code in failed.items():
            say(f"{host} ended with exit code {code}")
        print(ask(tpu, tpu.ssh(session.last_lines(LOG_LINES))), end="", file=sys.stderr, flush=True)
        return max(failed.values())
    return None if "running" in states else 0


def set_up(tpu: Slice, job: Job) -> None:
    """Sends the code to all workers, installs it and starts the run."""
    folder = local_folder(tpu)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables = folder / session.VARIABLES
    try:
        if job.variables:
            with open(os.open(variables, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.writelines(f"export {name}={shlex.quote(os.environ[name])}\n" for name in job.variables)
        call(job.code.bundle(folder / session.BUNDLE))
        for command in preparations(tpu, job):
            ask(tpu, command)
    finally:
        variables.unlink(missing_ok=True)
        (folder / session.BUNDLE).unlink(missing_ok=True)


def preparations(tpu: Slice, job: Job) -> list[list[str]]:
    """The calls that bring the code onto all workers and start the run."""
    names = [session.BUNDLE, *([session.VARIABLES] if job.variables else [])]
    return [
        tpu.ssh(session.folder()),
        tpu.send([str(local_folder(tpu) / name) for name in names], session.FOLDER),
        tpu.ssh(session.set_up(job.code.commit, job.extras)),
        tpu.ssh(session.start(job.identity, job.command)),
    ]


def local_folder(tpu: Slice) -> Path:
    """Where what is sent lies for a moment."""
    return Path.home() / ".cache" / "vit_jax" / "launch" / tpu.name


def fetch(tpu: Slice, remote: str, local: str) -> list[str]:
    """The call that copies a path of worker 0; a relative one counts from where the command runs."""
    path = remote if remote.startswith(("/", "~")) else f"{session.FOLDER}/code/{remote}"
    return tpu.fetch(path, str(Path(local).expanduser()))


def ask(tpu: Slice, argv: list[str]) -> str:
    """What a call on the workers prints; raises Gone where it fails since the slice is not there."""
    for attempt in range(TRIES):
        try:
            return call(argv)
        except Failed as failed:
            state = (look(tpu, tries=PATIENCE) or {}).get("state", "gone")
            if state != "READY":
                raise Gone(f"{tpu.name} is {state}") from None
            if attempt == TRIES - 1 or NO_KEY in failed.said:
                raise
            time.sleep(POLL)
    raise AssertionError


def look(tpu: Slice, queue: bool = False, tries: int = 1) -> dict[str, Any] | None:
    """What gcloud tells of the slice, or of its queued resource; None where there is none."""
    for attempt in range(tries):
        try:
            found: dict[str, Any] = json.loads(call(tpu.describe(queue)))
            return found
        except Failed as failed:
            if "NOT_FOUND" in failed.said or "was not found" in failed.said:
                return None
            if attempt == tries - 1:
                raise
            say(f"{tpu.name} cannot be asked; trying again: {failed.said.strip().splitlines()[-1:]}")
            time.sleep(POLL)
    raise AssertionError


def say(what: str) -> None:
    """Prints one line of the launcher's own; stdout has the log of the run alone."""
    print(f"launch: {what}", file=sys.stderr, flush=True)
