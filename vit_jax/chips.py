"""Names and peak performance of devices."""

import dataclasses
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak performance of a chip.

    Attributes:
      name: common name.
      flops: dense bfloat16 FLOP/s.
      memory: bytes of memory.
      bandwidth: bytes/s of memory.
      links: bytes/s to other chips in one direction, half of the published bidirectional bandwidth of TPUs and NVLink.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float


# By jax.Device.device_kind. TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} as of November 2026, except that
# according to the compiler, programs can use only 15.75 of a v5e's 16 GiB. GPUs: NVIDIA's data sheets for A100 80GB
# SXM, H100 SXM and H200 SXM.
CHIPS = {
    "TPU v4": Chip("TPU v4", 275e12, 32 * 2.0**30, 1228e9, 150e9),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 15.75 * 2.0**30, 819e9, 200e9),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * 2.0**30, 2765e9, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * 2.0**30, 1638e9, 400e9),
    "TPU7x": Chip("TPU7x", 2307e12, 192 * 2.0**30, 7380e9, 600e9),
    "NVIDIA A100": Chip("A100", 312e12, 80e9, 2039e9, 300e9),
    "NVIDIA H100": Chip("H100", 989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Chip("H200", 989e12, 141e9, 4800e9, 450e9),
}


def chip_of(devices: Sequence[Any]) -> Chip | None:
    """Return the peak performance of each of these devices, all of one kind; None if unknown, such as for a CPU.

    Devices that are cores of the same chip share its performance equally.
    """
    kind = devices[0].device_kind
    # NVIDIA's names have suffixes, as in "NVIDIA H100 80GB HBM3"; "TPU v5" must not match "TPU v5 lite".
    chip = CHIPS.get(kind) or next((chip for name, chip in CHIPS.items() if kind.startswith(name + " ")), None)
    places = [str(getattr(device, "coords", device.id)) for device in devices]
    cores = len(places) // len(set(places))
    if chip is None or cores == 1:
        return chip
    fields = ("flops", "memory", "bandwidth", "links")
    return dataclasses.replace(chip, **{field: getattr(chip, field) / cores for field in fields})


def hardware(devices: Sequence[Any]) -> str:
    """Describe devices, such as "8 x TPU v5 lite" or "cpu: AMD EPYC x 2 cores", counting the cores available to the process."""
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu: {name} x {cores} cores"


def host_memory() -> float:
    """Return the memory of this machine in bytes, or infinity if the system does not report it."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def device_memory(devices: Sequence[Any]) -> float:
    """Return the memory of each of this process's devices in bytes, or infinity if unknown."""
    if devices[0].platform == "cpu":
        return host_memory() / len(devices)
    chip = chip_of(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit") or (math.inf if chip is None else chip.memory)
