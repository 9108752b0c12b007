"""Processes that train together: one per host of a TPU pod, per GPU or per node of a cluster."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from vit_jax.types import UserError

# Set in each process by a custom launcher.
OWN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Set in each process by Slurm's srun and Open MPI's mpirun.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


def initialize() -> None:
    """Initialize jax.distributed if this process is one of several; call it before any other use of JAX.

    TPU pods, srun and mpirun are detected; other launchers set the variables in OWN. Only the first process writes to stdout
    and to files. Raises UserError if those variables are incomplete.
    """
    found = {name: os.environ[name] for name in OWN if os.environ.get(name)}
    if found:
        if len(found) < len(OWN) or not all(found[name].isdecimal() for name in OWN[1:]):
            raise UserError(
                f"Found {', '.join(f'{name}={value}' for name, value in found.items())}. Processes that train together need "
                f"all of {', '.join(OWN)}: HOST:PORT of the first process, the number of processes, and the index of this one."
            )
        address, count, index = (found[name] for name in OWN)
        if int(index) >= int(count):
            raise UserError(
                f"JAX_PROCESS_ID={index} must be less than JAX_NUM_PROCESSES={count}; process ids start at 0."
            )
        jax.distributed.initialize(address, int(count), int(index), cluster_detection_method="deactivate")
    elif _in_slurm() or int(os.environ.get(OPEN_MPI, 1)) > 1 or _on_tpu():
        jax.distributed.initialize()
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def is_first() -> bool:
    """Return whether this is the process that writes logs and files."""
    return jax.process_index() == 0


def wait(barrier: str) -> None:
    """Block until all processes have reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(barrier)


def agree(ready: bool, seconds: int = 30) -> bool:
    """Return whether every process is ready within this time; one that is not does not wait for the others."""
    if jax.process_count() == 1 or not ready:
        return ready
    from jax._src import distributed  # the public barrier has no limit

    try:
        distributed.global_state.client.wait_at_barrier("vit_jax_agree", seconds * 1000)  # type: ignore[union-attr]
    except Exception:
        return False
    return True


def _in_slurm() -> bool:
    return all(name in os.environ for name in SLURM) and int(os.environ["SLURM_NTASKS"]) > 1


def _on_tpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    present = any(Path(device).exists() for device in TPU_DEVICES)
    return "tpu" in platforms and present and importlib.util.find_spec("libtpu") is not None
