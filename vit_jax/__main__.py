"""Run a command: python -m vit_jax COMMAND ... calls cli/COMMAND.py."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import vit_jax
from vit_jax import cli, interrupts
from vit_jax.cli import command
from vit_jax.config.factory import near
from vit_jax.types import UserError
from vit_jax.xla_env import restart_tuned, use_compilation_cache

# Names of our commands in other tools.
OTHERS = {
    "fit": "train", "main": "train", "finetune": "train", "resume": "train", "eval": "evaluate", "test": "evaluate",
    "validate": "evaluate", "val": "evaluate", "infer": "predict", "inference": "predict", "classify": "predict",
    "new": "init", "create": "init", "push": "convert", "list": "models", "benchmark": "bench",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    if argv is None:
        restart_tuned()
    return command.run_cli(dispatch, sys.argv[1:] if argv is None else argv)


def dispatch(argv: Sequence[str]) -> int:
    """Run a command and return its exit code; raise UserError for a user's mistake."""
    names = sorted(info.name for info in pkgutil.iter_modules(cli.__path__) if info.name != "command")
    if argv and argv[0] in ("-V", "--version", "version"):
        print(f"vit_jax {vit_jax.__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vit COMMAND ..., or python -m vit_jax COMMAND ... (--help on each)\n")
        for name in names:
            print(f"  {name:<10} {(importlib.import_module(f'vit_jax.cli.{name}').__doc__ or '').splitlines()[0]}")
        print("\nexamples:\n  vit train --config=configs/digits.py --workdir=workdirs/digits")
        print("  vit evaluate --model=workdirs/digits --data=digits\n  vit --version")
        return 0
    if argv[0] not in names:
        hint = f"; did you mean {OTHERS[argv[0]]}?" if argv[0] in OTHERS else near(argv[0], names)
        raise UserError(f"Unknown command {argv[0]!r}{hint}")
    module = importlib.import_module(f"vit_jax.cli.{argv[0]}")
    if not {"-h", "--help"} & set(argv):
        use_compilation_cache()
    return module.main(argv[1:])


if __name__ == "__main__":
    interrupts.leave(main())
