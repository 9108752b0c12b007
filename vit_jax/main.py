"""Train, fine-tune, resume or extend a run: python -m vit_jax.main, which is `vit train`."""

import sys
from collections.abc import Sequence

from vit_jax import interrupts
from vit_jax.cli import command, train
from vit_jax.xla_env import restart_tuned


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 when finished or preempted, 1 when diverged, 2 for a UserError, 130 after Ctrl-C."""
    return command.run_cli(train.main, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    restart_tuned()
    interrupts.leave(main())
