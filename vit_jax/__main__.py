"""Run a command: python -m vit_jax COMMAND ... calls cli/COMMAND.py."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence

from vit_jax import cli, interrupts
from vit_jax.cli import command
from vit_jax.config.factory import near
from vit_jax.types import UserError
from vit_jax.xla_env import restart_tuned, use_compilation_cache


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    if argv is None:
        restart_tuned()
    return command.run_cli(dispatch, sys.argv[1:] if argv is None else argv)


def dispatch(argv: Sequence[str]) -> int:
    """Run a command and return its exit code; raise UserError for a user's mistake."""
    names = sorted(info.name for info in pkgutil.iter_modules(cli.__path__) if info.name != "command")
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vit COMMAND ..., or python -m vit_jax COMMAND ... (--help on each)\n")
        for name in names:
            print(f"  {name:<10} {(importlib.import_module(f'vit_jax.cli.{name}').__doc__ or '').splitlines()[0]}")
        print("\nTo train or resume: python -m vit_jax.main --config=FILE.py --workdir=DIR")
        return 0
    if argv[0] not in names:
        hint = "; to train: python -m vit_jax.main" if argv[0] in ("train", "fit", "main") else near(argv[0], names)
        raise UserError(f"Unknown command {argv[0]!r}{hint}")
    module = importlib.import_module(f"vit_jax.cli.{argv[0]}")
    if not {"-h", "--help"} & set(argv):
        use_compilation_cache()
    return module.main(argv[1:])


if __name__ == "__main__":
    interrupts.leave(main())
