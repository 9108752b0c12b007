"""List the original repository's models and where to download them: vit models [TEXT] [--json]."""

import dataclasses
import json
from collections.abc import Sequence

from vit_jax.cli.command import Parser
from vit_jax.types import UserError

EXAMPLES = """
vit models B_16
vit models augreg --json
"""


def main(argv: Sequence[str]) -> int:
    """Print name, training data, image size and hub references of every model whose line contains TEXT."""
    parser = Parser(prog="vit models", description=__doc__, examples=EXAMPLES)
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="such as B_16 or sam; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object per model")
    flags = parser.parse(argv)

    from vit_jax.pretrained.hub import ORIGINAL

    text = flags.text.lower()
    models = [m for m in ORIGINAL.values() if text in f"{m.name} {m.data} {' '.join(m.places)}".lower()]
    if not models:
        raise UserError(f"No model has {flags.text!r} in its name, data or places; `vit models` lists all.")
    for model in models:
        if flags.json:
            print(json.dumps(dataclasses.asdict(model)))
        else:
            print(f"{model.name}\n    {model.data}, {model.resolution} px: {', '.join(model.places)}")
    return 0
