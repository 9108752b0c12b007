"""What a job finds on a node of a cluster, where the cluster has chosen its devices."""

import dataclasses
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax import xla_env as cpu
from vit_jax.runs.sweeps.devices import SHARED_MEMORY, free_port, one_chip
from vit_jax.runs.sweeps.executor import Job

# By which Ray tells a worker its devices.
CHOSEN = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS")


def prepared(fields: Mapping[str, Any], needs: Mapping[str, float | int]) -> tuple[list[str], dict[str, str]]:
    """The words that start a job here, by the Python of this node, and its environment; called in a worker of the cluster."""
    paths = {name: Path(fields[name]) for name in ("folder", "log", "lock")}
    if not paths["lock"].parent.is_dir():
        raise FileNotFoundError(
            f"{socket.gethostname()} does not see {paths['lock'].parent}; all nodes must share --out"
        )
    job = Job(**{**fields, **paths})
    job = dataclasses.replace(job, command=(sys.executable, *job.command[1:]))
    return job.attended(os.getpid()), {**job.environment, **devices(job.environment, needs, os.environ)}


def devices(given: Mapping[str, str], needs: Mapping[str, float | int], chosen: Mapping[str, str]) -> dict[str, str]:
    """The variables that hold a job to what it asked for."""
    if not needs["gpus"] and not needs["tpus"]:
        # XLA computes in this many threads; the number is the same on every node, so that the rounding is. Virtual devices
        # need more, see cpu.missing.
        own = "NPROC" in given or cpu.VIRTUAL_DEVICES.search(given.get("XLA_FLAGS", ""))
        threads = {} if own else {"NPROC": str(max(1, int(needs["cpus"])))}
        return {"JAX_PLATFORMS": given.get("JAX_PLATFORMS", "cpu")} | threads
    found = {name: chosen[name] for name in CHOSEN if name in chosen}
    if needs["gpus"] and needs["gpus"] < 1:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{SHARED_MEMORY * needs['gpus']:.3f}"
    if needs["tpus"]:
        alone = one_chip(chosen.get("TPU_VISIBLE_CHIPS", "0"), free_port())
        if needs["tpus"] > 1:  # all chips of a host, which is a world of its own
            alone = {name: value for name, value in alone.items() if name.startswith("JAX_")}
        found |= alone
    return found
