"""Set up processes that train together: one per host of a TPU pod, per GPU or per node of a cluster."""

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the public API has neither the key-value store nor a barrier with a timeout
from jax.experimental import multihost_utils

from vit_jax.peers import SILENCE, Peers, forward
from vit_jax.types import UserError

# Set in each process by a custom launcher.
OWN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Set in each process by Slurm's srun and Open MPI's mpirun.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
CONNECT_SECONDS = 300
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")

_peers: Peers | None = None  # set if several processes train together


def initialize() -> None:
    """Initialize jax.distributed if this process is one of several; call it before any other use of JAX.

    TPU pods, srun and mpirun are detected; other launchers set the variables in OWN. Only the first process writes to stdout
    and to files. Raises UserError if the variables in OWN are incomplete.
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
        host, _, port = address.rpartition(":")
        if int(index) and port.isdecimal():
            address = f"127.0.0.1:{forward(host, int(port))}"
        try:
            jax.distributed.initialize(
                address,
                int(count),
                int(index),
                initialization_timeout=CONNECT_SECONDS,
                cluster_detection_method="deactivate",
            )
        except (jax.errors.JaxRuntimeError, RuntimeError) as error:
            raise UserError(
                f"The {count} processes did not meet at {found[OWN[0]]} within {CONNECT_SECONDS} s "
                f"({str(error).partition(chr(10))[0][:200]}); start all of them, each with its own {OWN[2]}."
            ) from None
        _meet(host)
    elif _in_slurm() or int(os.environ.get(OPEN_MPI, 1)) > 1 or _on_tpu():
        jax.distributed.initialize()
        _meet(str(distributed.global_state.coordinator_address).rpartition(":")[0])
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def _meet(host: str) -> None:
    """Connect to the first process, on `host`, so that all processes exit if one fails or is interrupted."""
    global _peers
    state = distributed.global_state
    assert state.client is not None
    _peers = Peers(state.process_id, state.num_processes)
    if state.process_id == 0:
        state.client.key_value_set("vit_jax/port", str(_peers.listen()))
    else:
        port = state.client.blocking_key_value_get("vit_jax/port", CONNECT_SECONDS * 1000)
        _peers.connect(host.strip("[]"), int(port))


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Within the context, an exception that ends this process also ends all other processes, with its message."""
    if _peers is None:
        yield
        return
    try:
        yield
    except UserError as error:
        _peers.leave(2, f"stopped: {error}")
        raise
    except KeyboardInterrupt:
        _peers.leave(130, "was interrupted by Ctrl-C")
        raise
    except BaseException as error:
        _peers.leave(1, f"failed: {error or type(error).__name__}")
        raise
    _peers.leave(0, "")


def wait_for_the_end(error: BaseException) -> None:
    """Wait after a failed collective, so that if another process failed first, its error ends this process too."""
    if _peers is not None and isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(SILENCE + 5)


def check_equal(values: Mapping[str, Any]) -> None:
    """Raise UserError in every process, naming the keys whose values differ between processes; runs no collective."""
    if _peers is None:
        return
    client, own = distributed.global_state.client, json.dumps(values, sort_keys=True)
    assert client is not None
    digest = hashlib.sha256(own.encode()).hexdigest()
    client.key_value_set(f"vit_jax/config/{_peers.index}", own)
    client.key_value_set(f"vit_jax/digest/{_peers.index}", digest)
    client.wait_at_barrier("vit_jax_config", CONNECT_SECONDS * 1000)
    digests = {name.rpartition("/")[2]: found for name, found in client.key_value_dir_get("vit_jax/digest/")}
    other = next((index for index in sorted(digests, key=int) if digests[index] != digests["0"]), None)
    if other is None:
        return
    first, second = (
        json.loads(client.blocking_key_value_get(f"vit_jax/config/{i}", CONNECT_SECONDS * 1000)) for i in ("0", other)
    )
    lines = [
        f"\n  {key}: {first.get(key)!r} in process 0, {second.get(key)!r} in process {other}"
        for key in sorted(first | second)
        if first.get(key) != second.get(key)
    ]
    raise UserError(f"The processes of a run need the same config, but these keys differ:{''.join(lines[:20])}")


def is_first() -> bool:
    """Return whether this is the process that writes logs and files."""
    return jax.process_index() == 0


def of_first(value: bool) -> bool:
    """Return the value of the first process in every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def wait(barrier: str) -> None:
    """Block until all processes have reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(barrier)


def agree(ready: bool, seconds: int = 30) -> bool:
    """Return whether every process is ready within `seconds`; a process that is not ready returns at once."""
    if jax.process_count() == 1 or not ready:
        return ready
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
