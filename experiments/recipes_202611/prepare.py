"""A folder of links to the first 100 images of each class: python experiments/recipes_202611/prepare.py CIFAR10 CIFAR10_few.

CIFAR10 has train and test folders of the ten classes; all of the test images are linked.
"""

import sys
from pathlib import Path

IMAGES = 100


def prepare(cifar10: Path, out: Path) -> None:
    """Makes the folder; it must not exist."""
    for label in sorted(path.name for path in (cifar10 / "train").iterdir()):
        (out / "train" / label).mkdir(parents=True)
        for file in sorted((cifar10 / "train" / label).iterdir())[:IMAGES]:
            (out / "train" / label / file.name).symlink_to(file.resolve())
    (out / "test").symlink_to((cifar10 / "test").resolve())


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
