"""Start a project with its own network, objective, data and evaluator: vit init DIR."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from vit_jax.cli.command import Parser
from vit_jax.types import UserError

EXAMPLES = """
vit init stripes && cd stripes && vit train --config=config.py --workdir=workdirs/stripes
"""


def main(argv: Sequence[str]) -> int:
    """Write the files of a small project into a new or empty folder, and print how to run it."""
    parser = Parser(prog="vit init", description=__doc__, examples=EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="a new or empty folder")
    folder = Path(os.path.expanduser(parser.parse(argv).folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} has files; give a new or empty folder.")
        for file in sorted(resources.files("vit_jax.cli").joinpath("project").iterdir(), key=lambda file: file.name):
            path = folder / file.name.removesuffix(".txt")
            path.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
            print(f"wrote {path}")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from None
    print(f"to run it: vit train --config={folder / 'config.py'} --workdir={folder / 'workdirs' / 'stripes'}")
    return 0
