"""Call external programs such as gcloud and sbatch, always as argument lists, never through a shell."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from vit_jax.types import UserError
from vit_jax.xla_env import user_environment

STDERR_LINES = 12  # shown when a program fails
# A name such as WANDB_API_KEY, --apiKey or hf-token with its value: after = or :, or, for a flag, as the next word. A
# variable such as $TOKEN is not a value.
NAME = (
    r"[\w.-]*?(?:pass[_.-]?(?:word|wd|phrase)|secret|token|credentials?|"
    r"(?:api|access|secret|private|auth|account)[_.-]?key|(?-i:_KEY))"
)
SECRET = re.compile(
    rf"(?i)(?<![\w.-])(?:-{{0,2}}(?P<name>{NAME})[\"']?\s*[=:]\s*|--?(?P<flag>{NAME})\s+)[\"']?(?P<value>[^\s\"'$=,;&}}-][^\s\"',;&}}]*)"
)
# Harmless values of fields such as mask_token.
PLAIN = re.compile(r"(?i)true|false|none|null|[\d.]+")


class CommandFailed(UserError):
    """A program exited with an error; `stderr` is its full output."""

    def __init__(self, argv: Sequence[str], code: int, stderr: str):
        last = "\n".join(stderr.strip().splitlines()[-STDERR_LINES:])
        super().__init__(f"{_abbreviated(argv)} failed with exit code {code}:\n{last}")
        self.stderr = stderr


def require_program(program: str, remedy: str) -> None:
    """Raise UserError if a program is not on PATH."""
    if shutil.which(program) is None:
        raise UserError(f"{program} was not found on PATH; {remedy}, or use --dry-run to see the commands.")


def run_command(argv: Sequence[str]) -> str:
    """Return the stdout of a program; raises CommandFailed if it exits with an error."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=user_environment(os.environ),
    )
    if done.returncode:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def _abbreviated(argv: Sequence[str]) -> str:
    return shlex.join(word if len(word) <= 60 else word[:50].splitlines()[0] + "..." for word in argv)


def check_command(command: Sequence[str]) -> None:
    """Raise UserError if a command is empty or would expose a secret in process listings."""
    if not command:
        raise UserError(
            "The command is missing; add it after --, as in -- python -m vit_jax.main --config=... --workdir=..."
        )
    for found in SECRET.finditer("\n".join(command)):
        name = found["name"] or found["flag"]
        if PLAIN.fullmatch(found["value"]) and "pass" not in name.lower():
            continue
        raise UserError(
            f"The command sets {name}, but other users can see command lines and logs record them. Set it as an environment "
            f"variable here instead; for TPUs, pass it on with --env={re.sub(r'[^A-Z0-9]', '_', name.upper())}."
        )


def check_variables(names: Sequence[str]) -> None:
    """Raise UserError if an environment variable to pass on is not set."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(
                f"--env={name}: expected only the name of a variable; its value is read from the environment."
            )
        if name not in os.environ:
            raise UserError(f"--env={name}: this variable is not set here; export it first.")
