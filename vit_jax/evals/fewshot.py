"""Evaluate few-shot linear classification in closed form."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Arrays
from vit_jax.evals.features import Classes, Features, FromFeatures, Others
from vit_jax.types import BatchSize, Count, Megabytes, Threads, UserError

# The constant feature for the bias, large enough that the bias is hardly regularised.
BIAS = 100.0


def whitened(features: Features, of: Others) -> Float[np.ndarray, "n d+1"]:
    """Standardise features by the mean and standard deviation of `of`, and append a constant feature."""
    scaled = (features - of.mean(axis=0, keepdims=True)) / (of.std(axis=0, keepdims=True) + 1e-5)
    return np.pad(scaled, ((0, 0), (0, 1)), constant_values=BIAS)


def least_squares(features: Features, labels: Classes, num_classes: int, l2: float) -> Float[np.ndarray, "d classes"]:
    """Return the weights W that minimise |X W - Y|^2 + l2 |W|^2, with Y 1 at the true class and -1 elsewhere."""
    targets = 2.0 * np.eye(num_classes)[labels] - 1.0
    n, d = features.shape
    if n >= d:
        return np.linalg.solve(features.T @ features + l2 * np.eye(d), features.T @ targets)
    return features.T @ np.linalg.solve(features @ features.T + l2 * np.eye(n), targets)


class FewShot(FromFeatures):
    """`shotN`: accuracy of a linear classifier on the features of N training images per class, as in big_vision.

    Least squares on whitened features with a fixed l2 (arXiv:2010.11929, section 4.1), averaged over image draws with
    the seeds 0, 1, ... below `draws`.
    """

    def __init__(
        self,
        source: Source,
        train: Source,
        preprocess: str,
        shots: tuple[int, ...] = (1, 5, 10, 25),
        l2: float = 1024.0,
        draws: Count = 3,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, train, preprocess, batch_size, threads, cache_mb)
        if min(shots, default=0) < 1 or l2 <= 0 or draws < 1:
            raise UserError(f"shots={shots}, l2={l2}, draws={draws}; expected numbers above 0.")
        self.shots, self.l2, self.draws = shots, l2, draws
        self._check_counts(np.array([train[index]["label"] for index in range(len(train))]))

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator; raises UserError if a class has too few training images."""
        (train, labels), (test, truth) = (
            (measured[name]["features"], measured[name]["label"]) for name in ("train", "test")
        )
        train, test = train.astype(np.float64), test.astype(np.float64)
        self._check_counts(labels)  # again, without the unreadable images
        num_classes = len(self.spec.class_names)
        result: dict[str, float] = {}
        for shots in self.shots:
            accuracies = []
            for seed in range(self.draws):
                rng = np.random.default_rng(seed)
                order = [rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]
                chosen = np.concatenate([indices[:shots] for indices in order])
                x = train[chosen]
                weights = least_squares(whitened(x, x), labels[chosen], num_classes, self.l2)
                accuracies.append(float(np.mean((whitened(test, x) @ weights).argmax(axis=1) == truth)))
            result[f"shot{shots}"] = float(np.mean(accuracies))
        return result | {"num_examples": len(test)}

    def _check_counts(self, labels: Classes) -> None:
        names = self.spec.class_names
        counts = np.bincount(labels, minlength=len(names))
        if counts.min() < max(self.shots):
            raise UserError(
                f"shots={self.shots}, but {names[counts.argmin()]!r} has {counts.min()} training images; ask for fewer."
            )
