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
    """Print the facts of every model whose name, data or place contains TEXT, one per line."""
    parser = Parser(prog="vit models", description=__doc__, examples=EXAMPLES)
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="such as B_16 or sam; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object per model")
    flags = parser.parse(argv)

    from vit_jax.pretrained.hub import ORIGINAL

    text = flags.text.lower()
    models = [m for m in ORIGINAL.values() if text in f"{m.name} {m.data} {' '.join(m.places)}".lower()]
    if not models:
        raise UserError(f"No model has {flags.text!r} in its name, data or places; `vit models` lists all.")
    if flags.json:
        for model in models:
            facts = {"parameters": model.parameters, "accuracy": model.accuracy}
            print(json.dumps(dataclasses.asdict(model) | facts))
        return 0
    print("parameters    px  ImageNet  name, data and where it is")
    for model in models:
        accuracy = f"{model.accuracy:6.2f} %" if model.accuracy else "       -"
        about = f"{model.name} ({model.data}): {', '.join(model.places)}"
        print(f"{model.parameters / 1e6:8.1f} M  {model.resolution:4}  {accuracy}  {about}")
    return 0
