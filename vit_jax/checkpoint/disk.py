"""Disk errors in a workdir: full, read-only, removed during a run."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vit_jax.checkpoint.saver import steps_in
from vit_jax.types import UserError

REMEDIES = {
    errno.ENOSPC: "make room (df -h and df -i show space and inodes)",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make the file system writable",
    errno.ENOENT: "move the folder back if it was renamed",
    errno.ENOTDIR: "move the folder back",
    errno.EACCES: "make the folder writable",
    errno.ESTALE: "mount the file system again",
    errno.EIO: "check the disk",
}
# If an error names no file, these can only come from writing a file.
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def explained(workdir: Path) -> Iterator[None]:
    """Convert a disk error in a workdir into a UserError with its reason, what is saved and how to resume."""
    try:
        yield
    except Exception as error:
        code = code_of(error, workdir)
        if code is None:
            raise
        steps = steps_in(workdir / "checkpoints")
        saved = f"step {steps[-1]} is saved" if steps else "no step is saved"
        raise UserError(
            f"{workdir} cannot be written: {os.strerror(code)}; {saved} there. To go on, {REMEDIES[code]} and run the same command."
        ) from None


def code_of(error: BaseException | None, workdir: Path) -> int | None:
    """Return the errno if an error, or one that caused it, is a disk error in a workdir; else None."""
    has_vanished = (workdir / "checkpoints").exists() and not (
        workdir / "config.json"
    ).exists()  # orbax creates the first
    if error is not None and (has_vanished or not workdir.exists()):
        return errno.ENOENT
    while error is not None:
        text, name = str(error), getattr(error, "filename", None)
        for code in REMEDIES:
            # tensorstore and orbax give the reason as text.
            if getattr(error, "errno", None) != code and os.strerror(code) not in text:
                continue
            if str(workdir) in f"{name} {text}" or (name is None and code in OF_WRITING):
                return code
        error = error.__cause__ or error.__context__
    return None
