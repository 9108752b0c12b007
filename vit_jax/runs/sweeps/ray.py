"""Jobs on the nodes of a Ray cluster, which share the folder of the sweep."""

import dataclasses
import logging
import math
import socket
import time
from collections.abc import Mapping
from typing import Any

from vit_jax.runs.sweeps.executor import Ended, Executor, Job
from vit_jax.types import UserError

PATIENCE = 5.0  # seconds in which the head of a cluster answers
ASKED = 1.0  # seconds for which an answer about the cluster's nodes is good


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a job has of its node to itself: cores, GPUs (a part of one where below 1) and TPU chips."""

    cpus: float = 1.0
    gpus: float = 0.0
    tpus: int = 0

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, self.tpus) < 0 or not max(self.cpus, self.gpus, self.tpus):
            raise UserError(
                f"--cpus={self.cpus} --gpus={self.gpus} --tpus={self.tpus}; expected none below 0 and one above, as Ray "
                "places runs by them."
            )

    def room(self, resources: Mapping[str, float]) -> int:
        """How many jobs a node with these resources takes at once."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "TPU": self.tpus}
        return min(math.floor(resources.get(name, 0) / need) for name, need in wanted.items() if need)

    def options(self) -> dict[str, Any]:
        """The same in Ray's words."""
        other = {"resources": {"TPU": self.tpus}} if self.tpus else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus} | other


@dataclasses.dataclass
class Attended:
    """A job with the actor that attends to it; `begun` once it answered, `answer` is what it was asked last."""

    actor: Any
    answer: Any
    begun: bool = False


class Ray(Executor):
    """So many jobs at once as the nodes that are alive have room for, and at most `jobs`."""

    def __init__(self, address: str, needs: Needs, jobs: int | None = None):
        self._ray = connect(address)
        self._needs, self._most = needs, jobs
        self._slots, self._seen = 0, -math.inf
        self._running: dict[str, Attended] = {}
        self._class = attendant(self._ray)
        if not self.slots:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            found = "; ".join(
                ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU", "TPU")) for resources in nodes
            )
            self._ray.shutdown()
            raise UserError(
                f"No node of the cluster has room for a run, which needs {needs}; found nodes with {found}."
            )

    @property
    def slots(self) -> int:
        """See Executor."""
        if time.monotonic() - self._seen > ASKED:
            alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            room = sum(self._needs.room(resources) for resources in alive)
            self._slots, self._seen = min(room, self._most or room), time.monotonic()
        return self._slots

    def start(self, job: Job) -> None:
        """See Executor."""
        actor = self._class.options(**self._needs.options()).remote()
        answer = actor.start.remote(plain(job), dataclasses.asdict(self._needs))
        self._running[job.name] = Attended(actor, answer)

    def poll(self) -> list[Ended]:
        """See Executor."""
        waiting = {attended.answer: name for name, attended in self._running.items()}
        answered = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0] if waiting else []
        told = [self._told(waiting[answer]) for answer in answered]
        return [ended for ended in told if ended is not None]

    def _told(self, name: str) -> Ended | None:
        """The end of a job that its actor tells; None, and another question, while it goes on."""
        attended, errors = self._running[name], self._ray.exceptions
        try:
            code = self._ray.get(attended.answer)
        except errors.ActorUnavailableError:  # for a moment, or for ever: the next answer says
            code = None
        except errors.RayTaskError as error:
            return self._end(Ended(name, 1, f"it could not be started on its node: {str(error).splitlines()[-1]}"))
        except errors.RayError as error:
            return self._end(Ended(name, None, f"its node was lost ({type(error).__name__})"))
        attended.begun = True
        if code is None:
            attended.answer = attended.actor.poll.remote()
            return None
        return self._end(Ended(name, code))

    def _end(self, ended: Ended) -> Ended:
        self._ray.kill(self._running.pop(ended.name).actor)
        return ended

    def stop(self, name: str) -> None:
        """See Executor."""
        attended = self._running.get(name)
        if attended is not None and attended.begun:
            attended.actor.stop.remote()
        elif attended is not None:  # no node has room for it
            self._ray.kill(attended.actor)

    def close(self) -> None:
        """See Executor; a job that loses its actor is told to end, and saves."""
        for attended in self._running.values():
            self._ray.kill(attended.actor)
        self._running.clear()
        self._ray.shutdown()


def connect(address: str) -> Any:
    """The library, connected to a cluster; raises UserError without either."""
    try:
        import ray
    except ImportError:
        raise UserError("--executor=ray needs Ray, which is not installed; run: pip install 'vit_jax[ray]'") from None
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), PATIENCE).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, OSError) as error:
        raise UserError(
            f"No Ray cluster at --address={address} ({str(error).splitlines()[0]}). Start one: ray start --head on one "
            "machine, ray start --address=HOST:6379 on the others, and the sweep on one of them."
        ) from None
    return ray


def plain(job: Job) -> dict[str, Any]:
    """A job in types that a worker reads before it knows where this package is."""
    fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    return fields | {name: str(fields[name]) for name in ("folder", "log", "lock")}


def attendant(ray: Any) -> Any:
    """The class of the actors. It is sent by value, as workers find this package only in the folder of a job."""

    class Attendant:
        """Starts a job as its child, on whatever node Ray has chosen."""

        def start(self, job: dict[str, Any], needs: dict[str, float | int]) -> None:
            """Starts it; called in the main thread of a worker, to which the child is bound."""
            import subprocess
            import sys

            sys.path.insert(0, job["folder"])
            from vit_jax.runs.sweeps import node

            words, environment = node.prepared(job, needs)
            self.process = subprocess.Popen(
                words,
                cwd=job["folder"],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

        def poll(self) -> int | None:
            """Its exit code; None when it goes on for a while."""
            import subprocess

            try:
                return self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                return None

        def stop(self) -> None:
            """Sends SIGTERM."""
            self.process.terminate()

    return ray.remote(max_restarts=0, max_task_retries=0)(Attendant)
