"""Assign cores, GPUs and TPU chips to jobs, detecting them without JAX, which would claim them."""

import dataclasses
import importlib.util
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from vit_jax.types import UserError
from vit_jax.xla_env import VIRTUAL_DEVICES

# The fraction of a GPU's memory available to all jobs that share it; each preallocates its part.
SHARED_MEMORY = 0.9
CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# Set by Ray to assign devices to a worker.
RAY_VARIABLES = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS")


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """The cores of one of several concurrent jobs, and the variables that select its accelerators."""

    cores: tuple[int, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def gpus(environment: Mapping[str, str], folder: Path = Path("/dev")) -> list[str]:
    """Return the names, as in CUDA_VISIBLE_DEVICES, of the GPUs that JAX would use."""
    platforms = environment.get("JAX_PLATFORMS", "")
    installed = any(importlib.util.find_spec(name) for name in CUDA_PLUGINS)
    if not installed or (platforms and not {"cuda", "gpu"} & set(platforms.split(","))):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    count = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in folder.glob("nvidia*"))
    return [str(index) for index in range(count)]


def tpu_chips(environment: Mapping[str, str], folder: Path = Path("/dev")) -> list[str]:
    """Return the names, as in TPU_VISIBLE_CHIPS, of the TPU chips that JAX would use."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if importlib.util.find_spec("libtpu") is None or (platforms and "tpu" not in platforms.split(",")):
        return []
    if "TPU_VISIBLE_CHIPS" in environment:
        return [name for name in environment["TPU_VISIBLE_CHIPS"].split(",") if name.strip()]
    chips = [path for path in folder.glob("accel*") if re.fullmatch(r"accel\d+", path.name)]
    chips = chips or [path for path in folder.glob("vfio/*") if path.name.isdecimal()]
    return [str(index) for index in range(len(chips))]


def split_devices(jobs: int | None, environment: Mapping[str, str]) -> list[DeviceShare]:
    """Return the share of each of `jobs` concurrent jobs; default: one per accelerator, or 1 without accelerators.

    Raises UserError if the TPU chips cannot be split this way.
    """
    chips, cards = tpu_chips(environment), gpus(environment)
    jobs = jobs or max(1, len(chips or cards))
    if chips and jobs not in (1, len(chips)):
        raise UserError(f"--jobs={jobs} on {len(chips)} TPU chips; expected {len(chips)}, one per chip, or 1.")
    variables: list[dict[str, str]] = [{} for _ in range(jobs)]
    if chips and jobs > 1:
        variables = [one_chip(chip, free_port()) for chip in chips]
    elif cards and jobs > 1:
        variables = [gpu_variables(cards, jobs, slot, environment) for slot in range(jobs)]
    return [DeviceShare(cores, extra) for cores, extra in zip(split_cores(jobs), variables, strict=True)]


def split_cores(jobs: int) -> list[tuple[int, ...]]:
    """Return the cores of each job: the same number for all, because it affects XLA's rounding on CPU."""
    if not hasattr(os, "sched_getaffinity"):
        return [()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // jobs
    if not each:  # jobs share cores
        return [(cores[slot % len(cores)],) for slot in range(jobs)]
    return [tuple(cores[slot * each : (slot + 1) * each]) for slot in range(jobs)]


def gpu_variables(cards: list[str], jobs: int, slot: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that give a job its own GPUs or, with more jobs than GPUs, a fraction of one's memory.

    The user's memory settings take precedence.
    """
    each = len(cards) // jobs
    if each:
        return {"CUDA_VISIBLE_DEVICES": ",".join(cards[slot * each : (slot + 1) * each])}
    share = {"CUDA_VISIBLE_DEVICES": cards[slot % len(cards)]}
    if not {"XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"} & set(environment):
        share["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{SHARED_MEMORY / -(-jobs // len(cards)):.3f}"
    return share


def one_chip(chip: str, port: int) -> dict[str, str]:
    """Return variables for a process that uses one chip of a host and, unlike a pod worker, is its own cluster."""
    bounds = {name: "1,1,1" for name in ("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS")}
    single = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    return {"TPU_VISIBLE_CHIPS": chip} | bounds | single


def free_port() -> int:
    """Return a local port that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ray_variables(
    job: Mapping[str, str], needs: Mapping[str, float | int], worker: Mapping[str, str]
) -> dict[str, str]:
    """Return variables that limit a job to its requested resources, given its environment and its Ray worker's."""
    if not needs["gpus"] and not needs["tpus"]:
        # The number of XLA's threads affects rounding, so it is the same on every node. Virtual devices need more
        # threads; see xla_env.missing_variables.
        threaded = "NPROC" in job or VIRTUAL_DEVICES.search(job.get("XLA_FLAGS", ""))
        threads = {} if threaded else {"NPROC": str(max(1, int(needs["cpus"])))}
        return {"JAX_PLATFORMS": job.get("JAX_PLATFORMS", "cpu")} | threads
    found = {name: worker[name] for name in RAY_VARIABLES if name in worker}
    if needs["gpus"] and needs["gpus"] < 1:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{SHARED_MEMORY * needs['gpus']:.3f}"
    if needs["tpus"]:
        single = one_chip(worker.get("TPU_VISIBLE_CHIPS", "0"), free_port())
        if needs["tpus"] > 1:  # all chips of a host
            single = {name: value for name, value in single.items() if name.startswith("JAX_")}
        found |= single
    return found
