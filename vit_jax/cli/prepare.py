"""Write images once, to be read in any order at speed: vit prepare --data=folder:PATH|tfds:NAME --out=DIR [--min_side=N]."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from vit_jax.cli.command import Parser
from vit_jax.types import UserError

EVERY = 10.0  # seconds between two lines of progress
NAMED = 10  # so many unreadable images are printed


def main(argv: Sequence[str]) -> int:
    """Writes a data set of TFDS as array_record into a new folder of DIR, and prints how to read it."""
    from vit_jax.data.sources.tfds import DATA_DIR, default_dir

    flags = make_parser().parse(argv)
    kind, _, place = flags.data.partition(":")
    if kind == "tfds":
        flags.data_dir = flags.data_dir or default_dir()
    check(flags, kind, place)

    from vit_jax.data.prepare import UNREADABLE, Bound, write
    from vit_jax.data.prepare_plans import folder_plan, tfds_plan

    bound = Bound(flags.min_side) if flags.quality is None else Bound(flags.min_side, flags.quality)
    splits = flags.split.split(",") if flags.split else None
    if kind == "folder":
        plan = folder_plan(place, flags.name, splits, bound)
    else:
        plan = tfds_plan(place, flags.data_dir, splits, flags.image_key or "image", bound)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    data_dir = Path(os.path.expanduser(flags.out))
    unreadable = write(
        plan, data_dir, threads=flags.threads, max_unreadable=flags.max_unreadable, progress=Progress(plan.size)
    )
    target = data_dir / plan.place
    for name, reason in list(unreadable.items())[:NAMED]:
        print(f"unreadable, left out: {name}: {reason}", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable):,} unreadable images were left out: {target / UNREADABLE}", file=sys.stderr)
    written = ", ".join(f"{split.name} {sum(split.shard_lengths):,}" for split in plan.info.splits)
    size = sum(split.num_bytes for split in plan.info.splits)
    print(f"wrote {target}: {written} examples, {size / 1e6:,.1f} MB")
    if kind == "tfds":
        print(f"read it with {DATA_DIR}={shlex.quote(os.path.abspath(data_dir))}, or as data_dir of each source")
        return 0
    source = {"type": "tfds.Tfds", "name": str(plan.place.parent), "data_dir": os.path.abspath(data_dir)}
    names = [split.name for split in plan.info.splits]
    tests = source | {"split": next((name for name in ("test", "val", "validation") if name in names), names[-1])}
    print(f'read it with --config.data.source="{source}" --config.evals.test.source="{tests}" (test: your evaluator)')
    return 0


def make_parser() -> Parser:
    """The flags of the command."""
    parser = Parser(prog="vit prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="folder:PATH, whose images are in class folders, or tfds:NAME, prepared as tfrecord or array_record",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write: DIR/NAME/VERSION, a new folder")
    parser.add_argument("--name", help="the name of a folder's data set; default: that of the folder")
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where TFDS keeps tfds:NAME; default: TFDS_DATA_DIR, or its own"
    )
    parser.add_argument("--split", metavar="NAMES", help="some of the splits, such as train,val; default: all")
    parser.add_argument(
        "--min_side",
        type=int,
        metavar="N",
        help="make images smaller until the shorter side has N pixels; smaller ones keep every byte; default: keep all",
    )
    parser.add_argument("--quality", type=int, help="of the JPEG files that --min_side makes, 1 to 100; default 95")
    parser.add_argument("--image_key", metavar="KEY", help="the feature of tfds:NAME for --min_side; default: image")
    parser.add_argument("--threads", type=int, default=2, help="images made at once; the result is the same; default 2")
    parser.add_argument(
        "--max_unreadable", type=float, default=0.01, help="the share that may be left out; default 0.01"
    )
    return parser


def check(flags: Any, kind: str, place: str) -> None:
    """Raises UserError for flags that are out of range, or not for this kind of data."""
    if kind not in ("folder", "tfds") or not place:
        raise UserError(f"Found --data={flags.data}, expected folder:PATH or tfds:NAME.")
    for flag, folder in (("out", flags.out), ("data_dir", flags.data_dir)):
        if folder is not None and (not folder or "://" in folder):
            raise UserError(f"Found --{flag}={folder}, expected a folder of this machine.")
    for flag, of, wanted in (
        ("name", "folder", "folder:PATH"),
        *((key, "tfds", "tfds:NAME") for key in ("data_dir", "image_key")),
    ):
        if getattr(flags, flag) is not None and kind != of:
            raise UserError(f"--{flag}={getattr(flags, flag)} is for --data={wanted}; found --data={flags.data}.")
    for flag in ("quality", "image_key"):
        if getattr(flags, flag) is not None and flags.min_side is None:
            raise UserError(f"--{flag}={getattr(flags, flag)} changes nothing without --min_side; give that too.")
    if flags.threads < 1 or (flags.min_side is not None and flags.min_side < 1):
        raise UserError(f"--threads={flags.threads} and --min_side={flags.min_side} must be at least 1.")
    if flags.quality is not None and not 1 <= flags.quality <= 100:
        raise UserError(f"--quality={flags.quality} must be from 1 to 100.")
    if not 0 <= flags.max_unreadable <= 1:
        raise UserError(f"--max_unreadable={flags.max_unreadable} must be a share from 0 to 1, such as 0.01.")


class Progress:
    """Prints every few seconds how many images are done, how fast, and when all will be."""

    def __init__(self, size: int):
        self._size, self._begun = size, time.monotonic()
        self._told = self._begun

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told < EVERY and done < self._size:
            return
        self._told = now
        rate = done / max(now - self._begun, 1e-9)
        left = timedelta(seconds=round((self._size - done) / rate))
        print(f"{done:>{len(f'{self._size:,}')},}/{self._size:,} images  {rate:,.0f} images/s  ETA {left}", flush=True)
