"""Show what a network is fed: vit preview --config=FILE.py[:ARG] [--config.KEY=VALUE] [--out=DIR] [--scan=N] [--json]."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from vit_jax.cli.command import Parser, number_flag, output_folder, path_flag, split_overrides
from vit_jax.types import Count, Steps, UserError

EXAMPLES = """
vit preview --config=configs/digits.py
vit preview --bands=SCANS
vit preview --config=configs/digits.py --config.data.preprocess="resize(32)" --out=seen --images=16
"""


def main(argv: Sequence[str]) -> int:
    """Print class counts, sizes, mean, standard deviation and damaged files; draw augmented batches with their labels."""
    overrides, rest = split_overrides(argv)
    parser = Parser(prog="vit preview", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="a file with get_config()")
    parser.add_argument(
        "--bands",
        type=path_flag,
        metavar="FOLDER",
        help="instead of a config: print the ranges of the raw channels of images",
    )
    parser.add_argument("--config.KEY", metavar="VALUE", help="another value for a key of the config")
    parser.add_argument(
        "--out", type=path_flag, default="preview", metavar="DIR", help="a folder for the sheet; default: preview"
    )
    parser.add_argument("--scan", type=number_flag(Steps), default=10_000, help="images to read; default 10000")
    parser.add_argument("--images", type=number_flag(Count), default=64, help="images in the sheet; default 64")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse(rest)
    if (flags.config is None) == (flags.bands is None):
        raise UserError("Give --config=FILE.py, or --bands=FOLDER to see the channels of raw images. See --help.")
    if flags.bands is not None:
        return show_channels(flags)

    from vit_jax.config.load import load
    from vit_jax.explain import preview
    from vit_jax.viz.predictions import draw_captioned

    config, source = preview.open_config(load(flags.config, overrides).to_dict())
    out = output_folder("--out", flags.out)
    found = preview.statistics(source, flags.scan)
    if not flags.json:
        print(preview.as_text(found), flush=True)  # even if no batch can be made
    fed = preview.feed(config, source, -(-flags.images // config["batch_size"]), flags.images)
    facts = preview.as_dict(found, fed)
    (out / "preview.json").write_text(json.dumps(facts, indent=1) + "\n")
    if flags.json:
        print(json.dumps(facts))
    if fed.pictures:
        draw_captioned(fed.pictures, f"as the network is fed: {config['data']['preprocess']}", out / "preview.png")
    if not flags.json:
        print("as the network is fed: " + ", ".join(f"{name} {array}" for name, array in fed.arrays.items()))
        print(f"  mean of each channel {preview.numbers(fed.mean)}, standard deviation {preview.numbers(fed.std)}")
        print(f"sheet: {out / 'preview.png'}" if fed.pictures else "no images among them to draw")
    return 0


def show_channels(flags: Any) -> int:
    """Print the statistics of the raw channels of a folder's images."""
    from vit_jax.explain.channels import as_text, channel_statistics

    found = channel_statistics(flags.bands, flags.scan)
    print(json.dumps(dataclasses.asdict(found)) if flags.json else as_text(found))
    return 0
