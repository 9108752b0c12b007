"""Several processes that train together: one for each host of a TPU pod, for each GPU or for each node of a cluster."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from vit_jax.types import UserError

# What a launcher of one's own sets in each process.
OWN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What Slurm's srun and Open MPI's mpirun set in each of the processes that they start.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


def join() -> None:
    """Joins the processes that were started together with this one, if any; to be called before anything else of JAX.

    On a TPU pod and under srun or mpirun everything is found out; other launchers set the variables of OWN. Only the first
    process writes to the terminal and to files. Raises UserError where those variables are incomplete.
    """
    given = {name: os.environ[name] for name in OWN if os.environ.get(name)}
    if given:
        if len(given) < len(OWN) or not all(given[name].isdecimal() for name in OWN[1:]):
            raise UserError(
                f"Found {', '.join(f'{name}={value}' for name, value in given.items())}; processes that train together need "
                f"all of {', '.join(OWN)}: HOST:PORT of the first process, their number, and this one's from 0."
            )
        address, count, index = (given[name] for name in OWN)
        if int(index) >= int(count):
            raise UserError(f"Found JAX_PROCESS_ID={index} of JAX_NUM_PROCESSES={count}; they count from 0.")
        jax.distributed.initialize(address, int(count), int(index), cluster_detection_method="deactivate")
    elif _in_slurm() or int(os.environ.get(OPEN_MPI, 1)) > 1 or _on_tpu():
        jax.distributed.initialize()
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Waits until every process has come to the same place, which has a name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _in_slurm() -> bool:
    return all(name in os.environ for name in SLURM) and int(os.environ["SLURM_NTASKS"]) > 1


def _on_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    present = any(Path(device).exists() for device in TPU_DEVICES)
    return "tpu" in wanted and present and importlib.util.find_spec("libtpu") is not None
