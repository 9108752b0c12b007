"""Write features of images as .npy, for data.source.features: vit features --model=REF --data=pairs:PATH --out=FILE."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vit_jax.cli.command import Parser, number_flag, path_flag
from vit_jax.types import BatchSize, UserError

EXAMPLES = """
vit features --model=hf:timm/vit_base_patch16_224.augreg_in21k --data=pairs:captions.csv --out=features.npy
"""


def main(argv: Sequence[str]) -> int:
    """Write one row of float32 for each image, in the order of the data, for a locked tower (configs/lit.py)."""
    parser = Parser(prog="vit features", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--model", required=True, metavar="REF", help="any model reference")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="images, such as folder:PATH or pairs:PATH")
    parser.add_argument("--split", help="default: all, or the test images if there are splits")
    parser.add_argument("--out", required=True, type=path_flag, metavar="FILE", help="a new .npy file")
    parser.add_argument("--batch_size", type=number_flag(BatchSize), default=64, help="default 64")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    flags = parser.parse(argv)
    out = Path(flags.out)
    if out.exists() or out.suffix != ".npy":
        raise UserError(f"--out={out}: give a new file that ends in .npy.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out={out} cannot be written: {out.parent} is no folder that can be written.")

    from vit_jax import inference
    from vit_jax.data.open import open_source
    from vit_jax.data.source import UnreadableImage, decoded

    loaded = inference.load(flags.model, trust=flags.trust)
    source = open_source(flags.data, flags.split, loaded.image_shape[2])
    rows = []
    for start in range(0, len(source), flags.batch_size):
        indices = range(start, min(start + flags.batch_size, len(source)))
        batch = np.zeros((flags.batch_size, *loaded.image_shape), np.uint8)  # of one shape: compiled once
        for place, index in enumerate(indices):
            try:
                image = source[index]["image"]
                batch[place] = loaded.preprocess(decoded(image))
            except UnreadableImage as error:
                raise UserError(f"{source.name(index)} cannot be read ({error}); repair or remove it.") from None
        rows.append(loaded(batch)["features"][: len(indices)])
    try:
        with open(out, "wb") as file:
            np.save(file, np.concatenate(rows).astype(np.float32), allow_pickle=False)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from None
    print(f"{out}: {len(source):,} x {rows[0].shape[1]:,}")
    return 0
