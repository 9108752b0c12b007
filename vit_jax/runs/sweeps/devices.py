"""The cores, GPUs and TPU chips of this machine, divided among jobs; found without JAX, which would take hold of them."""

import dataclasses
import importlib.util
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from vit_jax.types import UserError

# The share of a GPU's memory that jobs may take together where several share it; each takes its part when it starts.
SHARED_MEMORY = 0.9
CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Share:
    """What one job of several at once has of the machine."""

    cores: tuple[int, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def gpus(environment: Mapping[str, str], folder: Path = Path("/dev")) -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows the GPUs that JAX would use; none where it would use another platform."""
    wanted = environment.get("JAX_PLATFORMS", "")
    installed = any(importlib.util.find_spec(name) for name in CUDA_PLUGINS)
    if not installed or (wanted and not {"cuda", "gpu"} & set(wanted.split(","))):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    count = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in folder.glob("nvidia*"))
    return [str(number) for number in range(count)]


def tpu_chips(environment: Mapping[str, str], folder: Path = Path("/dev")) -> list[str]:
    """The same for TPU chips and TPU_VISIBLE_CHIPS."""
    wanted = environment.get("JAX_PLATFORMS", "")
    if importlib.util.find_spec("libtpu") is None or (wanted and "tpu" not in wanted.split(",")):
        return []
    if "TPU_VISIBLE_CHIPS" in environment:
        return [name for name in environment["TPU_VISIBLE_CHIPS"].split(",") if name.strip()]
    chips = [path for path in folder.glob("accel*") if re.fullmatch(r"accel\d+", path.name)]
    chips = chips or [path for path in folder.glob("vfio/*") if path.name.isdecimal()]
    return [str(number) for number in range(len(chips))]


def divide(jobs: int | None, environment: Mapping[str, str]) -> list[Share]:
    """The shares of `jobs` at once; by default a job for each accelerator, or one where there is none.

    Raises UserError where the devices cannot be divided so.
    """
    chips, cards = tpu_chips(environment), gpus(environment)
    jobs = jobs or max(1, len(chips or cards))
    if chips and jobs not in (1, len(chips)):
        raise UserError(f"--jobs={jobs} on {len(chips)} TPU chips; expected {len(chips)}, a chip for each, or 1.")
    if chips and jobs > 1:
        given = [one_chip(chip, free_port()) for chip in chips]
    elif cards and jobs > 1:
        given = [gpu_share(cards, jobs, slot, environment) for slot in range(jobs)]
    else:
        given = [{} for _ in range(jobs)]
    return [Share(cores, extra) for cores, extra in zip(core_shares(jobs), given, strict=True)]


def core_shares(jobs: int) -> list[tuple[int, ...]]:
    """The cores of each of so many jobs: equally many for all, as the rounding of a run depends on how many there are."""
    if not hasattr(os, "sched_getaffinity"):
        return [()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // jobs
    if not each:  # they take turns
        return [(cores[slot % len(cores)],) for slot in range(jobs)]
    return [tuple(cores[slot * each : (slot + 1) * each]) for slot in range(jobs)]


def gpu_share(cards: list[str], jobs: int, slot: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of one of several jobs: some GPUs of its own or, where there are more jobs, a part of one's memory.

    What the user says of the memory holds.
    """
    each = len(cards) // jobs
    if each:
        return {"CUDA_VISIBLE_DEVICES": ",".join(cards[slot * each : (slot + 1) * each])}
    share = {"CUDA_VISIBLE_DEVICES": cards[slot % len(cards)]}
    if not {"XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"} & set(environment):
        share["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{SHARED_MEMORY / -(-jobs // len(cards)):.3f}"
    return share


def one_chip(chip: str, port: int) -> dict[str, str]:
    """The variables of a process that has one chip of a host, and is a world of its own, unlike a worker of a pod."""
    bounds = {name: "1,1,1" for name in ("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS")}
    alone = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    return {"TPU_VISIBLE_CHIPS": chip} | bounds | alone


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
