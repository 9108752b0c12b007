"""The code that is sent: the commit at HEAD of this repository, with its history, as a git bundle."""

import dataclasses
import subprocess
from pathlib import Path

from vit_jax.config.factory import first
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Code:
    """A commit, and the repository that holds it."""

    root: Path
    commit: str

    def bundle(self, path: Path) -> list[str]:
        """The command that writes it into one file."""
        return ["git", "-C", str(self.root), "bundle", "create", "--quiet", str(path), "HEAD"]


def code(committed: bool) -> Code:
    """The commit at HEAD of the repository that this is called in.

    `committed` leaves changes that are in no commit behind; else they raise UserError, as runs that nobody can repeat.
    """
    try:
        root = Path(_git("rev-parse", "--show-toplevel"))
        commit = _git("rev-parse", "--verify", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{Path.cwd()} is in no git repository with a commit; launch from a clone, since the workers get its commit."
        ) from None
    if _git("rev-parse", "--is-shallow-repository") == "true":
        raise UserError(f"{root} is a shallow clone, which cannot be sent; run: git fetch --unshallow")
    changes = _git("status", "--porcelain").splitlines()
    if changes and not committed:
        listed = "".join(f"\n  {line}" for line in first(changes))
        raise UserError(
            f"{root} has changes that are in no commit:{listed}\nThe workers get HEAD; commit them (or ignore files by "
            ".gitignore), or launch HEAD without them by --committed."
        )
    return Code(root, commit)


def _git(*arguments: str) -> str:
    ended = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return ended.stdout.rstrip("\n")
