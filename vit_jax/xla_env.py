"""What XLA needs to find in the environment to run well on a CPU."""

import os
import re
import sys
from collections.abc import Mapping

VIRTUAL_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
# Collectives of one program that run at the same time on one device.
COLLECTIVES_AT_ONCE = 8
# Names what was added to the environment, for `given`.
ADDED = "VIT_JAX_ADDED"


def restart_tuned() -> None:
    """Starts this process again in the environment that XLA needs on a CPU, where that is possible and not chosen otherwise.

    The process keeps its id, its arguments and its open files.
    """
    added = missing(os.environ)
    if not added or not sys.platform.startswith("linux") or not sys.executable:
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added | {ADDED: ",".join(added)})


def given(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment as the user gave it, without what was added: in it other programs start as they would without us."""
    added = {ADDED, *environment.get(ADDED, "").split(",")}
    return {name: value for name, value in environment.items() if name not in added}


def missing(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that an environment lacks.

    Huge pages: XLA:CPU allocates the temporaries of every step afresh, and a third of a small model's step goes into page
    faults of 4 KiB; with pages of 2 MiB they all but vanish. glibc reads the setting when a process starts.

    Threads, for virtual devices: a collective blocks a thread of XLA's one pool until every device has come to it. With one
    thread for each device, two collectives that run at the same time wait for each other for ever.
    """
    added = {}
    if "GLIBC_TUNABLES" not in environment:
        added["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    devices = VIRTUAL_DEVICES.search(environment.get("XLA_FLAGS", ""))
    if devices and int(devices[1]) > 1 and "NPROC" not in environment:
        added["NPROC"] = str(max(int(devices[1]) * COLLECTIVES_AT_ONCE, os.cpu_count() or 1))
    return added
