"""Run a job on a TPU slice: create it, install, run, restart after a preemption, fetch results, delete the slice."""

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from vit_jax.runs.launch import session
from vit_jax.runs.launch.gcloud import TpuSlice
from vit_jax.runs.launch.logtail import LogTail
from vit_jax.runs.launch.subprocesses import CommandFailed, run_command
from vit_jax.runs.launch.tpu_job import POLL, TpuJob, staging
from vit_jax.types import UserError

WORKER_RETRIES = 3  # while the slice is READY: a new machine may not accept connections yet
STATUS_RETRIES = 119  # once the run no longer depends on the launcher
LOG_LINES = 30  # shown for a worker that failed
PREEMPTED = ("PREEMPTED", "TERMINATED")
IDLE = ("STOPPED", "HIDDEN", "UNKNOWN")
NO_KEY = "not present in the SSH agent"  # gcloud's message, including the remedy, for slices with several workers
NO_CAPACITY = ("no more capacity", "insufficient capacity", "stockout")


class SliceLost(Exception):
    """The slice, or the run on it, no longer exists and must be created again."""


def run_job(tpu: TpuSlice, job: TpuJob) -> int:
    """Run the job to its end and return its exit code; attach to the run if it already exists.

    Raises UserError for failures that a restart does not fix; the message says how to delete the slice.
    """
    tail, attached = LogTail(tpu), False
    try:
        while True:
            num_workers = ensure_slice(tpu)
            try:
                code = run_on_slice(tpu, job, num_workers, tail, attached)
                if job.download:
                    log(f"fetching {job.download[0]} into {job.download[1]}")
                    Path(os.path.expanduser(job.download[1])).parent.mkdir(parents=True, exist_ok=True)
                    call_workers(tpu, job.download_command(tpu))
                break
            except SliceLost as lost:
                log(f"{lost}; restarting it")
                attached = True
                time.sleep(POLL)
        if not job.keep:
            delete(tpu)
    except UserError as error:
        raise UserError(
            f"{error}\n{tpu.name} may still exist and cost money; to delete it:\n  {shlex.join(tpu.delete())}"
        ) from None
    return code


def ensure_slice(tpu: TpuSlice) -> int:
    """Create the slice if needed, block until it is ready, and return its number of workers."""
    created, before = False, ""
    while True:
        request = describe_slice(tpu, queue=True) if tpu.queued else None
        node = describe_slice(tpu)
        request_state = request["state"]["state"] if request else "ABSENT"
        state = node["state"] if node else request_state
        if state != before:
            log(f"{tpu.name} is {state}")
            before = state
        if state == "READY" and node:
            if node.get("acceleratorType", tpu.type) != tpu.type:
                raise UserError(f"{tpu.name} is a {node['acceleratorType']}, expected {tpu.type}; use another --name.")
            return len(node.get("networkEndpoints", [0])) // max(1, len(node.get("networkConfigs", [])))
        if state == "FAILED" and created and request:
            reason = request["state"].get("failedData", {}).get("error", {}).get("message", "no reason given")
            raise UserError(f"The queued resource {tpu.name} failed: {reason}")
        if state in IDLE:
            raise UserError(f"{tpu.name} is {state}; start it (gcloud compute tpus tpu-vm start) or delete it.")
        # ACTIVE without a node: someone deleted only the node.
        if state in PREEMPTED or (node is None and request_state in ("FAILED", "SUSPENDED", "ACTIVE")):
            delete(tpu)
        elif state == "ABSENT":
            created = create(tpu)
        else:
            time.sleep(POLL)


def create(tpu: TpuSlice) -> bool:
    """Request the slice once; return False if there is no capacity."""
    log(f"creating {tpu.name}: {tpu.type}{', spot' if tpu.spot else ''}")
    try:
        run_command(tpu.create())
    except CommandFailed as failed:
        if not any(phrase in failed.stderr.lower() for phrase in NO_CAPACITY):
            raise
        log(f"no capacity for {tpu.type} in {tpu.zone}; trying again")
        time.sleep(POLL)
        return False
    return True


def delete(tpu: TpuSlice) -> None:
    """Delete the slice; not an error if it is already gone."""
    log(f"deleting {tpu.name}")
    try:
        run_command(tpu.delete())
    except CommandFailed:
        if describe_slice(tpu) is not None or (tpu.queued and describe_slice(tpu, queue=True) is not None):
            raise


def run_on_slice(tpu: TpuSlice, job: TpuJob, num_workers: int, tail: LogTail, attached: bool) -> int:
    """Start the run on a ready slice unless it exists, follow its log and return its exit code.

    attached: this launcher started the run, so a failed run is reported and not started again. Raises SliceLost, or
    UserError if another run occupies the slice or this run was stopped.
    """
    found = worker_states(tpu)
    if any(state == "running" and run != job.run_id for _, run, state in found):
        raise UserError(
            f"{tpu.name} is running another command or commit; use another --name, or stop that run first:\n"
            f"  {shlex.join(tpu.ssh(session.stop_script()))}"
        )
    states = [state for _, run, state in found if run == job.run_id]
    if not states:
        tail.printed = 0
    usable = [state == "running" or (state.isdecimal() and (attached or state == "0")) for state in states]
    if len(states) == num_workers and all(usable):
        log(f"the run exists already: {', '.join(sorted(set(states)))}")
    else:
        log(f"installing commit {job.commit[:12]} on {num_workers} workers")
        install_and_start(tpu, job)
        log("running")
    while True:
        complete = tail.follow(lambda: slice_state(tpu) == "READY", POLL)
        code = exit_code(tpu, worker_states(tpu), num_workers)
        if code is not None:
            if not complete:  # the run ended while the connection was broken
                tail.follow(lambda: True, POLL)
            return code
        time.sleep(POLL)


def exit_code(tpu: TpuSlice, found: list[tuple[str, str, str]], num_workers: int) -> int | None:
    """Return the run's exit code from its workers' states, or None while it is running; raises as `run_on_slice`."""
    states = [state for *_, state in found]
    if "stopped" in states:
        raise UserError(f"The run on {tpu.name} was stopped; the same command starts it again.")
    if "lost" in states or "none" in states or len(states) < num_workers:
        raise SliceLost(f"the run on {tpu.name} is lost")
    failed = {host: int(state) for host, _, state in found if state not in ("running", "0")}
    if failed:
        if "running" in states:  # the other workers would wait forever
            call_workers(tpu, tpu.ssh(session.stop_script()))
        time.sleep(POLL)
        # The failure may be the effect of a preemption, which becomes visible only later.
        if "lost" in [state for *_, state in worker_states(tpu)] or slice_state(tpu) != "READY":
            raise SliceLost(f"the run on {tpu.name} is lost")
        for host, code in failed.items():
            log(f"{host} ended with exit code {code}")
        print(call_workers(tpu, tpu.ssh(session.last_lines_script(LOG_LINES))), end="", file=sys.stderr, flush=True)
        return max(failed.values())
    return None if "running" in states else 0


def install_and_start(tpu: TpuSlice, job: TpuJob) -> None:
    """Copy the code to all workers, install it and start the run."""
    folder = staging(tpu)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables = folder / session.VARIABLES
    try:
        if job.variables:
            with open(os.open(variables, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.writelines(f"export {name}={shlex.quote(os.environ[name])}\n" for name in job.variables)
        run_command(job.bundle_command(tpu))
        for command in job.start_commands(tpu):
            call_workers(tpu, command)
    finally:
        variables.unlink(missing_ok=True)
        (folder / session.BUNDLE).unlink(missing_ok=True)


def worker_states(tpu: TpuSlice) -> list[tuple[str, str, str]]:
    """Return (host, run id, state) of every worker; see `session.parse_status`."""
    return session.parse_status(call_workers(tpu, tpu.ssh(session.status_script())))


def call_workers(tpu: TpuSlice, argv: list[str]) -> str:
    """Return the output of a call to the workers, with retries; raises SliceLost if the slice is not READY."""
    for attempt in range(WORKER_RETRIES + 1):
        try:
            return run_command(argv)
        except CommandFailed as failed:
            state = slice_state(tpu)
            if state != "READY":
                raise SliceLost(f"{tpu.name} is {state}") from None
            if attempt == WORKER_RETRIES or NO_KEY in failed.stderr:
                raise
            time.sleep(POLL)
    raise AssertionError


def slice_state(tpu: TpuSlice) -> str:
    """Return the state of the slice, such as READY, or "gone"."""
    return (describe_slice(tpu, retries=STATUS_RETRIES) or {}).get("state", "gone")


def describe_slice(tpu: TpuSlice, queue: bool = False, retries: int = 0) -> dict[str, Any] | None:
    """Return gcloud's description of the slice, or of its queued resource; None if it does not exist."""
    for attempt in range(retries + 1):
        try:
            found: dict[str, Any] = json.loads(run_command(tpu.describe(queue)))
            return found
        except CommandFailed as failed:
            if "NOT_FOUND" in failed.stderr or "was not found" in failed.stderr:
                return None
            if attempt == retries:
                raise
            log(f"cannot get the state of {tpu.name}; trying again: {failed.stderr.strip().splitlines()[-1:]}")
            time.sleep(POLL)
    raise AssertionError


def log(message: str) -> None:
    """Print a line of the launcher to stderr; stdout contains only the log of the run."""
    print(f"launch: {message}", file=sys.stderr, flush=True)
