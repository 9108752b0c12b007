"""Calls of the programs that rent machines; always argument lists, never a shell's text."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from vit_jax.types import UserError
from vit_jax.xla_env import given

TOLD = 12  # last lines of what a program said that failed
# In the words of a command: a name such as WANDB_API_KEY or --api_key with a value that is no number.
SECRET = re.compile(r"(?i)(?:^|\s)-{0,2}(\w+_(?:key|token|secret|password))=(?!\d+$)\S")


class Failed(UserError):
    """A program ended with an error; `said` is what it wrote about it."""

    def __init__(self, argv: Sequence[str], code: int, said: str):
        last = "\n".join(said.strip().splitlines()[-TOLD:])
        super().__init__(f"{brief(argv)} failed with exit code {code}:\n{last}")
        self.said = said


def find(program: str, remedy: str) -> None:
    """Raises UserError where a program is not on PATH."""
    if shutil.which(program) is None:
        raise UserError(f"Found no {program} on PATH; {remedy}, or see the commands with --dry-run.")


def call(argv: Sequence[str]) -> str:
    """What a program prints; raises Failed with the end of its stderr."""
    ended = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=given(os.environ)
    )
    if ended.returncode:
        raise Failed(argv, ended.returncode, ended.stderr or ended.stdout)
    return ended.stdout


def brief(argv: Sequence[str]) -> str:
    """A command in one line, its long arguments cut."""
    return shlex.join(word if len(word) <= 60 else word[:50].splitlines()[0] + "..." for word in argv)


def check_command(command: Sequence[str]) -> None:
    """Raises UserError for a command that is none, or that shows a secret to everyone who can list processes."""
    if not command:
        raise UserError("Found no command; write it after --, as -- python -m vit_jax.main --config=... --workdir=...")
    for word in command:
        if found := SECRET.search(word):
            raise UserError(
                f"The command sets {found[1]}, and command lines are seen by others and kept in records; have the program "
                f"read a variable, set it here, and pass it on, to TPUs with --env={found[1].upper()}."
            )


def check_variables(names: Sequence[str]) -> None:
    """Raises UserError for a variable to pass on that is not set here."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env={name}; expected the name of a variable alone, whose value is taken from here.")
        if name not in os.environ:
            raise UserError(f"--env={name}, which is not set here; export it first.")
