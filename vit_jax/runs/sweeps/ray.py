"""Run jobs on the nodes of a Ray cluster, which share the folder of the sweep."""

import dataclasses
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.runs.sweeps.devices import ray_variables
from vit_jax.runs.sweeps.executor import Executor, Job, JobEnd
from vit_jax.types import UserError

CONNECT_SECONDS = 5.0  # timeout for the head node
NODES_SECONDS = 1.0  # how long the list of nodes is cached


@dataclasses.dataclass(frozen=True)
class Needs:
    """Resources that a job reserves on its node: cores, GPUs (a fraction of one if below 1) and TPU chips."""

    cpus: float = 1.0
    gpus: float = 0.0
    tpus: int = 0

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, self.tpus) < 0 or not max(self.cpus, self.gpus, self.tpus):
            raise UserError(
                f"--cpus={self.cpus} --gpus={self.gpus} --tpus={self.tpus}: expected no negative value and at least one "
                "above 0, because Ray places runs by their resources."
            )

    def capacity(self, resources: Mapping[str, float]) -> int:
        """Return how many jobs a node with these resources can run at once."""
        needed = {"CPU": self.cpus, "GPU": self.gpus, "TPU": self.tpus}
        return min(math.floor(resources.get(name, 0) / need) for name, need in needed.items() if need)

    def options(self) -> dict[str, Any]:
        """Return the options of a Ray actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus} | ({"resources": {"TPU": self.tpus}} if self.tpus else {})


@dataclasses.dataclass
class RunningJob:
    """A job's actor; `reply` is its pending call, and `started` is set once it has replied."""

    actor: Any
    reply: Any
    started: bool = False


class RayExecutor(Executor):
    """Runs as many jobs at once as the live nodes have capacity for, but at most `jobs`."""

    def __init__(self, address: str, needs: Needs, jobs: int | None = None):
        self._ray = connect(address)
        self._needs, self._limit = needs, jobs
        self._slots, self._updated = 0, -math.inf
        self._running: dict[str, RunningJob] = {}
        self._actor_class = actor_class(self._ray)
        if not self.slots:
            found = "; ".join(
                ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU", "TPU"))
                for resources in self._live_nodes()
            )
            self._ray.shutdown()
            raise UserError(
                f"No node of the cluster has room for a run, which needs {needs}; found nodes with {found}."
            )

    def _live_nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    @property
    def slots(self) -> int:
        if time.monotonic() - self._updated > NODES_SECONDS:
            capacity = sum(map(self._needs.capacity, self._live_nodes()))
            self._slots, self._updated = min(capacity, self._limit or capacity), time.monotonic()
        return self._slots

    def start(self, job: Job) -> None:
        fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
        # Plain types only: the worker unpickles them before it can import this package.
        fields |= {name: str(fields[name]) for name in ("folder", "log", "lock")}
        actor = self._actor_class.options(**self._needs.options()).remote()
        self._running[job.name] = RunningJob(actor, actor.start.remote(fields, dataclasses.asdict(self._needs)))

    def poll(self) -> list[JobEnd]:
        pending = {running.reply: name for name, running in self._running.items()}
        replied = self._ray.wait(list(pending), num_returns=len(pending), timeout=0)[0] if pending else []
        ends = [self._end_of(pending[reply]) for reply in replied]
        for end in filter(None, ends):
            self._ray.kill(self._running.pop(end.name).actor)
        return [end for end in ends if end is not None]

    def _end_of(self, name: str) -> JobEnd | None:
        """Return the end of a job that has replied; if it is still running, poll it again and return None."""
        running, errors = self._running[name], self._ray.exceptions
        try:
            code = self._ray.get(running.reply)
        except errors.ActorUnavailableError:  # temporary, or followed by an ActorDiedError
            code = None
        except errors.RayTaskError as error:
            return JobEnd(name, 1, f"it could not be started on its node: {str(error).splitlines()[-1]}")
        except errors.RayError as error:
            return JobEnd(name, None, f"its node was lost ({type(error).__name__})")
        running.started = True
        if code is not None:
            return JobEnd(name, code)
        running.reply = running.actor.poll.remote()
        return None

    def stop(self, name: str) -> None:
        running = self._running.get(name)
        if running is not None and running.started:
            running.actor.stop.remote()
        elif running is not None:  # still queued
            self._ray.kill(running.actor)

    def close(self) -> None:
        """Kill all actors; a job whose actor dies receives SIGTERM and saves."""
        for running in self._running.values():
            self._ray.kill(running.actor)
        self._running.clear()
        self._ray.shutdown()


def connect(address: str) -> Any:
    """Return the ray module, connected to a cluster; raises UserError if either is missing."""
    try:
        import ray
    except ImportError:
        raise UserError("--executor=ray needs Ray, which is not installed; run: pip install 'vit_jax[ray]'") from None
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal() and "/" not in host:  # ray.init would retry for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, OSError) as error:
        raise UserError(
            f"No Ray cluster at --address={address} ({str(error).splitlines()[0]}). Start one with `ray start --head` on one "
            "machine and `ray start --address=HOST:6379` on the others, and run the sweep on one of them."
        ) from None
    return ray


def actor_class(ray: Any) -> Any:
    """Return the actor class. It is pickled by value, because workers find this package only in the job's folder."""

    class JobActor:
        """Starts a job as its child process on the node chosen by Ray."""

        def start(self, job: dict[str, Any], needs: dict[str, float | int]) -> None:
            """Start the job from the worker's main thread, to which the child is bound."""
            import subprocess
            import sys

            sys.path.insert(0, job["folder"])
            from vit_jax.runs.sweeps.ray import job_on_node

            command, environment = job_on_node(job, needs)
            self.process = subprocess.Popen(
                command, cwd=job["folder"], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )

        def poll(self) -> int | None:
            """Return the exit code, or None if the job is still running after a second."""
            import subprocess

            try:
                return self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                return None

        def stop(self) -> None:
            """Send SIGTERM."""
            self.process.terminate()

    return ray.remote(max_restarts=0, max_task_retries=0)(JobActor)


def job_on_node(fields: Mapping[str, Any], needs: Mapping[str, float | int]) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of a job, for this node's Python and devices; called in a Ray worker."""
    paths = {name: Path(fields[name]) for name in ("folder", "log", "lock")}
    if not paths["lock"].parent.is_dir():
        raise FileNotFoundError(
            f"{socket.gethostname()} does not see {paths['lock'].parent}; all nodes must share --out"
        )
    job = Job(**{**fields, **paths})
    job = dataclasses.replace(job, command=(sys.executable, *job.command[1:]))
    return job.child_command(os.getpid()), {**job.environment, **ray_variables(job.environment, needs, os.environ)}
