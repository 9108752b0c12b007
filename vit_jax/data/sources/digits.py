"""Load the handwritten digits that ship with scikit-learn: 1,797 images of 8 x 8 pixels, no download."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit_jax.data.source import Example, Image, Label, Source
from vit_jax.types import UserError


class Digits(Source):
    """1,437 training and 360 test digits (UCI "Optical Recognition of Handwritten Digits", 1998).

    The split is always `train_test_split(test_size=360, stratify=y, random_state=0)`.
    """

    def __init__(self, split: str = "train"):
        if split not in ("train", "test"):
            raise UserError(f"Found split={split!r} for digits, expected 'train' or 'test': choose one of the two.")
        images, labels = load_digits(return_X_y=True)
        train_x, test_x, train_y, test_y = train_test_split(
            images.reshape(-1, 8, 8, 1), labels, test_size=360, stratify=labels, random_state=0
        )
        images, self._labels = (train_x, train_y) if split == "train" else (test_x, test_y)
        self._images = np.rint(images * (255 / 16)).astype(np.uint8)  # the file has ink levels from 0 to 16
        self._split = split
        self.fields = {"image": Image(), "label": Label(tuple("0123456789"))}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return f"digits/{self._split}/{index}"
