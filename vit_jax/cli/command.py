"""Shared by all commands: parse flags, and convert a UserError into one message and exit code 2."""

import argparse
import io
import itertools
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vit_jax import stores
from vit_jax.config import other_libraries
from vit_jax.config.factory import near, quoted
from vit_jax.config.hints import fits, hint_name
from vit_jax.interrupts import EXIT_CODE, Interrupts
from vit_jax.printable import lines
from vit_jax.types import UserError

LONGEST = 4000  # characters of a message, which may quote input


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, with near matches of unknown flags.

    examples: command lines, one per line, which --help shows at its end.
    """

    def __init__(self, *, examples: str = "", **options: Any):
        epilog = textwrap.indent(f"\n{examples.strip()}", "  ")
        options |= {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": f"examples:{epilog}"}
        super().__init__(**options)

    def error(self, message: str):
        raise UserError(f"{message[0].upper()}{message[1:]}. See --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the parsed flags; raise UserError for an unknown flag, or one whose value is empty."""
        values, unknown = self.parse_known_args(argv)
        for word, following in zip(argv, [*argv[1:], None], strict=False):
            flag, equals, value = word.partition("=")
            if flag.startswith("--") and (not value if equals else following == ""):
                raise UserError(f"{flag} is empty; give it a value, or leave it out.")
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(f"Unknown argument {unknown[0]}{near(unknown[0].partition('=')[0], known)}")
        return values


def path_flag(text: str) -> str:
    """Return the path that a flag gives, local or on an object store, with ~ expanded; for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; expected a path, such as . for this folder")
    path = os.path.expanduser(text)
    if not stores.is_remote(path) and stores.is_too_long(path):
        raise argparse.ArgumentTypeError("it is longer than a path can be")
    return path


def number_flag(hint: Any) -> Callable[[str], Any]:
    """Return a function that reads a number of a type, such as Count, from the text of a flag; for argparse."""
    kind = float if fits(0.5, hint) else int

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if not fits(value, hint):
            raise argparse.ArgumentTypeError(f"found {quoted(text, 40)}; expected {hint_name(hint)}")
        return value

    return read


def numbers_flag(hint: Any) -> Callable[[str], list[Any]]:
    """Return a function that reads several numbers of a type, such as 1,8, from the text of a flag; for argparse."""
    read = number_flag(hint)
    return lambda text: [read(word) for word in text.split(",")]


def run_cli(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call a command and return its exit code: 2 after a UserError, whose message goes to stderr, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may contain what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with Interrupts() as ctrl_c:
            try:
                return function(argv)
            except Exception:
                if ctrl_c.requested:  # libraries turn KeyboardInterrupt into other exceptions
                    raise KeyboardInterrupt from None
                raise
    except UserError as error:
        text = lines(error)
        print(f"error: {text if len(text) <= LONGEST else text[:LONGEST] + '...'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return EXIT_CODE
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
    """Return the folder of a flag such as "--out", created if it is missing; raises UserError if it is not writable."""
    if "://" in text:
        raise UserError(f"{flag}={text} is on an object store; expected a folder on this machine.")
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag}={text} is no folder that can be written ({error.strerror}); give another path."
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{flag}={text} is no folder that can be written; give another path.")
    return path


def hint_flag(argv: Sequence[str]) -> None:
    """Raise UserError if a training flag is another library's, with its name here."""
    for word, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        flag, _, value = word.partition("=")
        hint = other_libraries.key_hint(flag, value or ("" if after.startswith("-") else after))
        if word.startswith("--") and hint:
            raise UserError(f"Unknown argument {flag}; expected {hint}")
