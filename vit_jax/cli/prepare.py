"""Convert a dataset to array_record, for random access: vit prepare --data=folder:PATH|tfds:NAME --out=DIR [--min_side=N]."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from vit_jax.cli.command import Parser, number_flag, path_flag
from vit_jax.data.jpeg_parts import has_tool
from vit_jax.printable import line
from vit_jax.types import Between, Count, Fraction, Units, UserError

PROGRESS_SECONDS = 10.0  # between two lines of progress
MAX_NAMED = 10  # unreadable images that are printed

EXAMPLES = """
vit prepare --data=folder:PHOTOS --out=prepared --min_side=256
vit prepare --data=folder:PHOTOS --out=prepared --fast_crops
vit prepare --data=tfds:imagenet2012 --data_dir=/data/tfds --out=prepared
"""


def main(argv: Sequence[str]) -> int:
    """Write a TFDS dataset as array_record into a new folder of DIR, and print how to read it."""
    from vit_jax.data.sources.tfds import DATA_DIR, default_dir

    flags = make_parser().parse(argv)
    kind, _, place = flags.data.partition(":")
    if kind == "tfds":
        flags.data_dir = flags.data_dir or default_dir()
    check(flags, kind, place)

    from vit_jax.data.prepare import UNREADABLE, Rewrite, write
    from vit_jax.data.prepare_sources import from_folder, from_tfds

    rewrite = Rewrite(flags.min_side, flags.quality or Rewrite.quality, flags.fast_crops)
    splits = flags.split.split(",") if flags.split else None
    if kind == "folder":
        dataset = from_folder(place, flags.name, splits, rewrite)
    else:
        dataset = from_tfds(place, flags.data_dir, splits, flags.image_key or "image", rewrite)
    for note in dataset.notes:
        print(f"note: {line(note)}", file=sys.stderr)
    data_dir = Path(flags.out)
    target = data_dir / dataset.path
    if kind == "folder":
        check_outside(target, place)
    unreadable = write(
        dataset,
        data_dir,
        threads=flags.threads,
        max_unreadable=flags.max_unreadable,
        progress=WriteProgress(dataset.size),
    )
    for name, reason in list(unreadable.items())[:MAX_NAMED]:
        print(f"unreadable, omitted: {name}: {reason}", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable):,} unreadable images were omitted: {target / UNREADABLE}", file=sys.stderr)
    counts = ", ".join(f"{split.name} {sum(split.shard_lengths):,}" for split in dataset.info.splits)
    size = sum(split.num_bytes for split in dataset.info.splits)
    print(f"wrote {target}: {counts} examples, {size / 1e6:,.1f} MB")
    if flags.fast_crops:
        print(
            f"{len(rewrite.made):,} of {dataset.size:,} files are made for crops; others, such as PNG, stay as they were"
        )
    if kind == "tfds":
        print(f"read it with {DATA_DIR}={shlex.quote(os.path.abspath(data_dir))}, or as data_dir of each source")
        return 0
    source = {"type": "tfds.Tfds", "name": str(dataset.path.parent), "data_dir": os.path.abspath(data_dir)}
    names = [split.name for split in dataset.info.splits]
    tests = source | {"split": next((name for name in ("test", "val", "validation") if name in names), names[-1])}
    print(f'read it with --config.data.source="{source}" --config.evals.test.source="{tests}" (test: your evaluator)')
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's flags."""
    parser = Parser(prog="vit prepare", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="folder:PATH with images in class folders, or tfds:NAME prepared as tfrecord or array_record",
    )
    parser.add_argument(
        "--out", type=path_flag, required=True, metavar="DIR", help="write to the new folder DIR/NAME/VERSION"
    )
    parser.add_argument("--name", help="name of a folder's dataset; default: the folder's name")
    parser.add_argument(
        "--data_dir",
        type=path_flag,
        metavar="DIR",
        help="folder of tfds:NAME; default: TFDS_DATA_DIR, or TFDS's default",
    )
    parser.add_argument("--split", metavar="NAMES", help="splits to write, such as train,val; default: all")
    parser.add_argument(
        "--min_side",
        type=number_flag(Units),
        metavar="N",
        help="shrink larger images to a shorter side of N pixels; smaller files are copied; default: copy all",
    )
    parser.add_argument(
        "--quality",
        type=number_flag(Annotated[int, Between(1, 100)]),
        help="JPEG quality of images shrunk by --min_side, 1 to 100; default 95",
    )
    parser.add_argument(
        "--fast_crops",
        action="store_true",
        help="write JPEG files of which training decodes only the part that it crops, with the same pixels; they are 3 to 5 "
        "%% larger, and jpegtran is needed",
    )
    parser.add_argument(
        "--image_key",
        metavar="KEY",
        help="image feature of tfds:NAME that --min_side and --fast_crops rewrite; default: image",
    )
    parser.add_argument(
        "--threads",
        type=number_flag(Count),
        default=2,
        help="number of threads; the result is the same; default 2",
    )
    parser.add_argument(
        "--max_unreadable",
        type=number_flag(Fraction),
        default=0.01,
        help="fraction of unreadable images to tolerate; default 0.01",
    )
    return parser


def check(flags: Any, kind: str, place: str) -> None:
    """Raise UserError for flags that are not for this kind of data."""
    if kind not in ("folder", "tfds") or not place:
        raise UserError(f"--data={flags.data} is not a dataset; expected folder:PATH or tfds:NAME.")
    for flag, folder in (("out", flags.out), ("data_dir", flags.data_dir)):
        if folder is not None and "://" in folder:
            raise UserError(f"--{flag}={folder} must be a folder on this machine.")
    for flag, of in (("name", "folder:PATH"), ("data_dir", "tfds:NAME"), ("image_key", "tfds:NAME")):
        if getattr(flags, flag) is not None and kind != of.partition(":")[0]:
            raise UserError(f"--{flag}={getattr(flags, flag)} is for --data={of}; found --data={flags.data}.")
    if flags.fast_crops and not has_tool():
        raise UserError(
            "--fast_crops needs jpegtran of libjpeg-turbo: apt install libjpeg-turbo-progs, brew install jpeg-turbo, or conda "
            "install -c conda-forge libjpeg-turbo."
        )
    for flag, rewritten in (("quality", False), ("image_key", flags.fast_crops)):
        if getattr(flags, flag) is not None and flags.min_side is None and not rewritten:
            needed = "--min_side or --fast_crops" if flag == "image_key" else "--min_side"
            raise UserError(f"--{flag}={getattr(flags, flag)} has no effect without {needed}; set it too.")


def check_outside(target: Path, source: str) -> None:
    """Raise UserError if the output is inside the folder that is read, where it would become a class."""
    folder = os.path.realpath(os.path.expanduser(source))
    if Path(os.path.realpath(target)).is_relative_to(folder):
        raise UserError(
            f"{target} is inside {folder}, which is read as images; give an --out outside, or another --name."
        )


class WriteProgress:
    """Print the number of images done, their rate and the time left, every few seconds."""

    def __init__(self, size: int):
        self._size, self._started = size, time.monotonic()
        self._printed = self._started

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._printed < PROGRESS_SECONDS and done < self._size:
            return
        self._printed = now
        rate = done / max(now - self._started, 1e-9)
        left = timedelta(seconds=round((self._size - done) / rate))
        print(f"{done:>{len(f'{self._size:,}')},}/{self._size:,} images  {rate:,.0f} images/s  ETA {left}", flush=True)
