"""Classify by nearest neighbours in feature space."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Arrays
from vit_jax.evals.features import Features, FromFeatures, OtherClasses, Others
from vit_jax.types import BatchSize, Megabytes, Threads, UserError


def normalized(features: Features) -> Features:
    """Divide each row by its length."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def votes(
    features: Features, train: Others, labels: OtherClasses, num_classes: int, k: int, temperature: float
) -> Float[np.ndarray, "n classes"]:
    """Return the votes of the k training images with the largest cosine, weighted by exp(cosine / temperature)."""
    cosines = features @ train.T
    nearest = (
        np.argpartition(-cosines, k - 1, axis=1)[:, :k] if k < len(train) else np.tile(np.arange(k), (len(features), 1))
    )
    cosines = np.take_along_axis(cosines, nearest, axis=1)
    # Relative to the largest, so that no weight overflows.
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    counts = np.zeros((len(features), num_classes))
    np.add.at(counts, (np.arange(len(features))[:, None], labels[nearest]), weights)
    return counts


class Knn(FromFeatures):
    """`accuracy` of the weighted vote of the k nearest training images, as in DINO (arXiv:2104.14294, section 4.1).

    The weights are exp(cosine / temperature) of the features (arXiv:1805.01978, section 3.4).
    """

    def __init__(
        self,
        source: Source,
        train: Source,
        preprocess: str,
        k: int = 20,
        temperature: float = 0.07,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, train, preprocess, batch_size, threads, cache_mb)
        if not 1 <= k <= len(train) or temperature <= 0:
            raise UserError(
                f"k={k} and temperature={temperature}; expected 1 to {len(train)} neighbours and a temperature above 0."
            )
        self.k, self.temperature = k, temperature

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        train, test = (normalized(measured[name]["features"]) for name in ("train", "test"))
        labels, truth = measured["train"]["label"], measured["test"]["label"]
        classes = len(self.spec.class_names)
        k = min(self.k, len(train))  # fewer if some were unreadable
        correct = 0
        for start in range(0, len(test), self.data.batch_size):
            rows = slice(start, start + self.data.batch_size)
            chosen = votes(test[rows], train, labels, classes, k, self.temperature).argmax(axis=1)
            correct += int((chosen == truth[rows]).sum())
        return {"accuracy": correct / len(test), "num_examples": len(test)}
