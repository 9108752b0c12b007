"""Folders of links to a part of the labelled images: python experiments/labelfree_202611/prepare.py CIFAR10 OUT.

CIFAR10 has train and test folders of the ten classes. OUT/one_SEED gets 1 % of the training images of each class, OUT/ten_SEED
10 %, drawn by the seed for the seeds 0, 1 and 2; all of the test images are in each.
"""

import random
import sys
from pathlib import Path

SHARES = {"one": 0.01, "ten": 0.1}
SEEDS = (0, 1, 2)


def prepare(cifar10: Path, out: Path) -> None:
    """Make the folders; they must not exist."""
    for label in sorted(path.name for path in (cifar10 / "train").iterdir()):
        files = sorted((cifar10 / "train" / label).iterdir())
        for seed in SEEDS:
            drawn = random.Random(seed).sample(files, len(files))
            for name, share in SHARES.items():
                for file in drawn[: round(share * len(files))]:
                    link(out / f"{name}_{seed}" / "train" / label / file.name, file)
    for seed in SEEDS:
        for name in SHARES:
            link(out / f"{name}_{seed}" / "test", cifar10 / "test")


def link(path: Path, target: Path) -> None:
    """Make a link at `path` to `target`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
