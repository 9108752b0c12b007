"""Shared by all commands: parse flags, and turn a UserError into one message and exit code 2."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vit_jax.config.factory import near
from vit_jax.types import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, with near matches of unknown flags."""

    def error(self, message: str):
        raise UserError(f"{message[0].upper()}{message[1:]}. See --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the parsed flags; raise UserError for an unknown flag."""
        values, unknown = self.parse_known_args(argv)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(f"Unknown argument {unknown[0]}{near(unknown[0].partition('=')[0], known)}")
        return values


def run_cli(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call a command and return its exit code: 2 after a UserError, whose message goes to stderr, 130 after Ctrl-C."""
    try:
        return function(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reading end of a pipe was closed, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def split_overrides(argv: Sequence[str], prefix: str = "--config.") -> tuple[list[tuple[str, str]], list[str]]:
    """Split a command line into its --config.KEY=VALUE, as (key, value text), and the remaining arguments."""
    overrides: list[tuple[str, str]] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(prefix):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix(prefix).partition("=")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UserError(f"{word} needs a value: {word}=VALUE.")
        overrides.append((key, value))
    return overrides, rest


def output_folder(flag: str, text: str) -> Path:
    """Return the folder of a flag such as "--out", made where it is missing; raises UserError where it cannot be written."""
    path = Path(os.path.expanduser(text))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(
            f"{flag}={text} is no folder that can be written ({getattr(error, 'strerror', None) or error}); give another path."
        ) from None
    if not text or not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{flag}={text} is no folder that can be written; give another path.")
    return path


def parse_run(argv: Sequence[str], description: str | None) -> tuple[str, str, list[tuple[str, str]]]:
    """Return --config, --workdir and --config.KEY=VALUE as (file[:arg], workdir, [(key, value text)])."""
    overrides, rest = split_overrides(argv)
    parser = Parser(prog="python -m vit_jax.main", description=description, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="a file with get_config()")
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="a new folder, local or on gs:// or s3://, or a run to resume"
    )
    parser.add_argument("--config.KEY", metavar="VALUE", help="override a key of the config; may be repeated")
    values = parser.parse(rest)
    if not values.workdir:
        raise UserError("--workdir is empty; expected the path of a folder.")
    return values.config, values.workdir, overrides
