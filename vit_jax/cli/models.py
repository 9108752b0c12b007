"""List the original's models and where each can be had now: vit models [TEXT] [--json]."""

import dataclasses
import json
from collections.abc import Sequence

from vit_jax.cli.command import Parser
from vit_jax.types import UserError


def main(argv: Sequence[str]) -> int:
    """Prints name, training data, image size and places of every model whose line contains TEXT."""
    parser = Parser(prog="vit models", description=__doc__)
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="such as B_16 or sam; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each model")
    flags = parser.parse(argv)

    from vit_jax.pretrained.names import table

    rows = [row for row in table() if flags.text.lower() in f"{row.name} {row.data} {' '.join(row.places)}".lower()]
    if not rows:
        raise UserError(
            f"No model of the original has {flags.text!r} in its name, data or places; `vit models` lists all."
        )
    for row in rows:
        if flags.json:
            print(json.dumps(dataclasses.asdict(row)))
        else:
            print(f"{row.name}\n    {row.data}, {row.resolution} px: {', '.join(row.places)}")
    if not flags.json:
        print(
            "The buckets (gs://) answer 403 since 2026; VIT_JAX_BUCKETS names a mirror, VIT_JAX_MODELS a folder of files."
        )
    return 0
