"""Run the process of a job: python -m vit_jax.runs.sweeps.child LOG LOCK PARENT CORES COMMAND..., execs the command.

When its parent dies, it receives SIGTERM and saves. It holds a lock until it ends, so that no two processes of a run
exist at the same time, even while the child of a killed sweep is still saving.
"""

import ctypes
import fcntl
import os
import shlex
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def main() -> None:
    """Redirect output, take the lock, set the affinity (CORES such as "0,1", or empty for all) and exec the command."""
    log, lock, parent, cores, *command = sys.argv[1:]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # the parent died before prctl took effect
            return
    acquire(lock)
    print(f"$ {shlex.join(command)}", flush=True)
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execv(command[0], command)


def acquire(lock: str) -> None:
    """Block until this process holds the lock, which survives exec and is released when the process ends."""
    file = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o644)
    os.set_inheritable(file, True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for the previous process of this run to save and exit", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)


if __name__ == "__main__":
    main()
