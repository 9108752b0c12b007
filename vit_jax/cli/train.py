"""Train, fine-tune, resume or extend a run: vit train --config=FILE.py[:ARG] --workdir=DIR [--config.KEY=VALUE ...]."""

import signal
import sys
from collections.abc import Sequence

from vit_jax.cli.command import Parser, hint_flag, path_flag, split_overrides
from vit_jax.xla_env import use_compilation_cache

EXAMPLES = """
vit train --config=configs/digits.py --workdir=workdirs/digits
vit train --config=configs/scratch.py:data=folder:PHOTOS --workdir=workdirs/photos
vit train --config=configs/finetune.py:model=hf:timm/vit_small_patch16_224.augreg_in21k,data=folder:PHOTOS --workdir=DIR
vit train --config=configs/digits.py --workdir=DIR --config.steps=300 --config.optim.lr=1e-3 --config.batch_size=32
"""


def main(argv: Sequence[str]) -> int:
    """Return the exit code: 0 when finished or preempted, 1 when training diverged."""
    # Until fit takes over there is nothing to save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return train(argv)
    finally:
        # Everything is on disk; a signal while the interpreter exits must not change the exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def train(argv: Sequence[str]) -> int:
    """See main."""
    from vit_jax import distributed

    if {"-h", "--help"} & set(argv):
        parse(argv)
    distributed.initialize()
    with distributed.leaving():
        config_argument, workdir, overrides = parse(argv)
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


def parse(argv: Sequence[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """Return --config, --workdir and --config.KEY=VALUE as (file[:arg], workdir, [(key, value text)])."""
    overrides, rest = split_overrides(argv)
    parser = Parser(prog="vit train", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="a file with get_config()")
    parser.add_argument(
        "--workdir", type=path_flag, required=True, metavar="DIR",
        help="a new folder, local or on gs:// or s3://, or a run to resume",
    )  # fmt: skip
    parser.add_argument("--config.KEY", metavar="VALUE", help="override a key of the config; may be repeated")
    hint_flag(rest)
    values = parser.parse(rest)
    return values.config, values.workdir, overrides
