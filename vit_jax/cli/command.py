"""Shared by all commands: parse flags, and turn a UserError into one message and exit code 2."""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.config import words
from vit_jax.config.factory import near
from vit_jax.types import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, with near matches of unknown flags.

    examples: command lines, one a line, which --help shows at its end.
    """

    def __init__(self, *, examples: str = "", **options: Any):
        epilog = textwrap.indent(f"\n{examples.strip()}", "  ")
        options |= {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": f"examples:{epilog}"}
        super().__init__(**options)

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


def hint_flag(argv: Sequence[str]) -> None:
    """Raise UserError where a flag of training is another library's, with what it is called here."""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        hint = words.key_hint(flag, value or ("" if after.startswith("-") else after))
        if word.startswith("--") and hint:
            raise UserError(f"Unknown argument {flag}; expected {hint}")
