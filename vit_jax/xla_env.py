"""Environment variables that XLA needs to run well on a CPU, and the cache of compiled programs.

Importing this module does not import JAX, since the variables must be set first.
"""

import hashlib
import os
import platform
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

VIRTUAL_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
CONCURRENT_COLLECTIVES = 8  # collectives of one program that may run at the same time on one device
# Lists the variables that were added to the environment, for `user_environment`.
ADDED = "VIT_JAX_ADDED"
# The cache folder that JAX itself reads; empty disables the cache.
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
CACHE_BYTES = 4 * 2**30


def restart_tuned() -> None:
    """Re-execute this process, on Linux, with the variables that XLA needs on a CPU, unless the user set them.

    The process keeps its id, arguments and open files.
    """
    added = missing_variables(os.environ)
    if not added or not sys.platform.startswith("linux") or not sys.executable:
        return
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # unblocked by `Interrupts`
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added | {ADDED: ",".join(added)})


def user_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that `restart_tuned` added, for other programs."""
    added = {ADDED, *environment.get(ADDED, "").split(",")}
    return {name: value for name, value in environment.items() if name not in added}


def missing_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to an environment.

    Huge pages: XLA:CPU allocates the temporaries of every step afresh, and page faults of 4 KiB take a third of a small model's
    step; with 2 MiB pages they nearly vanish. glibc reads the setting when a process starts.

    Threads, for virtual devices: a collective blocks a thread of XLA's only pool until every device has joined. With one thread
    per device, two concurrent collectives deadlock.
    """
    added = {}
    if "GLIBC_TUNABLES" not in environment:
        added["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    devices = VIRTUAL_DEVICES.search(environment.get("XLA_FLAGS", ""))
    if devices and int(devices[1]) > 1 and "NPROC" not in environment:
        added["NPROC"] = str(max(int(devices[1]) * CONCURRENT_COLLECTIVES, os.cpu_count() or 1))
    return added


def use_compilation_cache() -> None:
    """Cache compiled programs, up to 4 GiB, in ~/.cache/vit_jax/compiled or the folder that CACHE_VARIABLE names."""
    if CACHE_VARIABLE in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "vit_jax" / "compiled" / _cpu_id()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # without a writable home, programs are compiled every time
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def _cpu_id() -> str:
    """Return an id of this machine's CPU model: machines that share a home may not be able to run each other's code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
