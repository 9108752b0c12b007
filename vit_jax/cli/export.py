"""Export a model: vit export --model=REF --to=stablehlo|onnx --out=DIR [--output=NAMES] [IMAGES...]."""

import itertools
import sys
from collections.abc import Sequence

from vit_jax.cli.command import Parser, number_flag, output_folder, path_flag
from vit_jax.cli.predict import find_images
from vit_jax.printable import line
from vit_jax.types import BatchSize, UserError

EXAMPLES = """
vit export --model=workdirs/photos --to=onnx --out=exported
vit export --model=workdirs/photos --to=onnx --out=exported --int8 photos/val
vit export --model=S/16 --to=stablehlo --out=exported --output=features,attention --dtype=bfloat16
"""


def main(argv: Sequence[str]) -> int:
    """Write the files, check them on images and print how far they are from the model; exit code 1 if a check fails."""
    parser = Parser(prog="vit export", description=__doc__, examples=EXAMPLES)
    parser.add_argument(
        "images",
        type=path_flag,
        nargs="*",
        metavar="FILE_OR_FOLDER",
        help="images to check it on; default: two photographs",
    )
    parser.add_argument("--model", required=True, metavar="REF", help="any model reference")
    parser.add_argument(
        "--to",
        required=True,
        choices=("stablehlo", "onnx"),
        help="stablehlo: for jax; onnx: for onnxruntime and others",
    )
    parser.add_argument("--out", type=path_flag, required=True, metavar="DIR", help="a folder for the files")
    parser.add_argument(
        "--output", default="", metavar="NAMES", help="such as logits, features, probs, attention; default: logits"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the computation")
    parser.add_argument("--any_size", action="store_true", help="stablehlo: resize images of any size inside")
    parser.add_argument("--int8", action="store_true", help="onnx: write int8 matrices too, with their agreement")
    parser.add_argument("--max_images", type=number_flag(BatchSize), default=64, help="images to use; default 64")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    flags = parser.parse(argv)
    paths = list(itertools.islice(find_images(flags.images), flags.max_images))
    names = [name for name in flags.output.split(",") if name]

    from vit_jax import inference
    from vit_jax.export import export as exporting
    from vit_jax.export import onnx

    if flags.to == "onnx":
        onnx.need_extra()
    loaded = inference.load(flags.model, trust=flags.trust)
    for note in loaded.notes:
        print(f"note: {line(note)}", file=sys.stderr)
    images = read(loaded, paths) if paths else None
    out = output_folder("--out", flags.out)
    checks = exporting.export(
        flags.model, loaded, out, flags.to, names, flags.dtype, flags.any_size, flags.int8, images
    )
    for name, check in checks.items():
        size = (out / name).stat().st_size / 1e6
        found = ", ".join(f"{key} {value:.1e}" for key, value in check.differences.items())
        if check.agreement is not None:
            found = f"{check.agreement['same_largest']:.1%} the same largest, mean cosine {check.agreement['mean_cosine']:.4f}"
        state = "OK" if exporting.passed(check) else "FAILED"
        print(f"{state}: {line(out / name)}, {size:.1f} MB; on {check.images} images differs by {found}")
    return 0 if all(map(exporting.passed, checks.values())) else 1


def read(loaded, paths: Sequence[str]):
    """Return the readable images, preprocessed for the model; raises UserError if there are none."""
    import numpy as np

    from vit_jax.data.source import UnreadableImage

    images = []
    for path in paths:
        try:
            images.append(loaded.preprocess(path))
        except UnreadableImage as error:
            print(f"unreadable: {line(path)}: {line(error)}", file=sys.stderr)
    if not images:
        raise UserError(f"None of the {len(paths)} images can be read, so there is nothing to check the export on.")
    return np.stack(images)
