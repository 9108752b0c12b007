"""Train, fine-tune or resume: python -m vit_jax.main --config=FILE.py[:ARG] --workdir=DIR [--config.KEY=VALUE ...]."""

import signal
import sys
from collections.abc import Sequence

from vit_jax import interrupts
from vit_jax.cli import command
from vit_jax.xla_env import restart_tuned, use_compilation_cache


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 when finished or preempted, 1 when diverged, 2 for what the user can fix, 130 after Ctrl-C."""
    # Until fit takes over there is nothing to save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    code = command.run_cli(train, sys.argv[1:] if argv is None else argv)
    # Everything is on disk; a signal while the interpreter exits must not change the exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return code


def train(argv: Sequence[str]) -> int:
    """See main."""
    from vit_jax import distributed

    if {"-h", "--help"} & set(argv):
        command.parse_run(argv, __doc__)
    distributed.initialize()
    with distributed.leaving():
        config_argument, workdir, overrides = command.parse_run(argv, __doc__)
        use_compilation_cache()
        from vit_jax.config.load import load
        from vit_jax.train.fit import fit
        from vit_jax.train.metrics import NonFiniteLossError

        try:
            fit(load(config_argument, overrides), workdir)
        except NonFiniteLossError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    restart_tuned()
    interrupts.leave(main())
