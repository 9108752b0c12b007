"""The process of a job: python -m vit_jax.runs.sweeps.child LOG LOCK PARENT CORES COMMAND..., which becomes the command.

It ends with its parent: SIGTERM, upon which a run saves. And it holds a lock to its end, so that of one run there are never
two processes, also not for the moment in which the child of a killed sweep still saves.
"""

import ctypes
import fcntl
import os
import shlex
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def main() -> None:
    """Sets everything up and becomes the command; CORES is as in "0,1", or empty for all of them."""
    log, lock, parent, cores, *command = sys.argv[1:]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before it could have been told
            return
    hold(lock)
    print(f"$ {shlex.join(command)}", flush=True)
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execv(command[0], command)


def hold(lock: str) -> None:
    """Waits for a lock, which this process then holds to its end, whatever program it becomes."""
    file = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o644)
    os.set_inheritable(file, True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for the last process of this run to save and end", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)


if __name__ == "__main__":
    main()
