"""Folders of links for the study: python experiments/pretraining_pays_202611/prepare.py CIFAR10 OUT.

CIFAR10 has train and test folders of the ten classes. OUT/seven gets seven of the classes whole; OUT/three_SEED, for the seeds
0, 1 and 2, fifty training images of each of the other three classes, drawn by the seed, and all of their test images.
"""

import random
import sys
from pathlib import Path

THREE = ("cat", "ship", "truck")
IMAGES, SEEDS = 50, (0, 1, 2)


def prepare(cifar10: Path, out: Path) -> None:
    """Makes the folders; they must not exist."""
    for label in sorted(path.name for path in (cifar10 / "train").iterdir()):
        if label not in THREE:
            for split in ("train", "test"):
                link(out / "seven" / split / label, cifar10 / split / label)
            continue
        for seed in SEEDS:
            files = sorted((cifar10 / "train" / label).iterdir())
            for file in random.Random(seed).sample(files, IMAGES):
                link(out / f"three_{seed}" / "train" / label / file.name, file)
            link(out / f"three_{seed}" / "test" / label, cifar10 / "test" / label)


def link(path: Path, target: Path) -> None:
    """A link at `path` to what `target` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
