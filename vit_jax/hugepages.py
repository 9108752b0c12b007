"""Large memory pages for XLA on the CPU."""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb=1"


def use_huge_pages() -> None:
    """Starts this process again with glibc asking for huge pages, where that is possible and not chosen otherwise.

    XLA:CPU allocates the temporaries of every step afresh, and a third of a small model's step goes into page faults of
    4 KiB; with pages of 2 MiB they all but vanish. glibc reads the setting when a process starts, so nothing later helps.
    The process keeps its id, its arguments and its open files.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in tunables or not sys.executable:
        return
    environment = os.environ | {"GLIBC_TUNABLES": f"{tunables}:{TUNABLE}".lstrip(":")}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
