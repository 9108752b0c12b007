"""Evaluate a linear probe: logistic regression on frozen features."""

import warnings
from collections.abc import Mapping

import numpy as np

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Arrays
from vit_jax.evals.features import Classes, Features, FromFeatures, OtherClasses, Others
from vit_jax.types import BatchSize, Megabytes, Threads, UserError


class LinearProbe(FromFeatures):
    """`accuracy` of logistic regression on standardised features, fitted by L-BFGS, and the best inverse l2 `C`.

    `C` is chosen from `strengths` on a held-out fifth of the training images, as in arXiv:2103.00020, appendix A.3, and
    the model is then fitted to all of them.
    """

    def __init__(
        self,
        source: Source,
        train: Source,
        preprocess: str,
        strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        max_iter: int = 1000,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, train, preprocess, batch_size, threads, cache_mb)
        if len(train.class_names) < 2:
            raise UserError(
                f"A linear probe tells classes apart; found the training images of {len(train.class_names)}: take data of several, "
                "or leave the probe out, such as by --config.evals.probe=None."
            )
        if min(strengths, default=0) <= 0 or max_iter < 1:
            raise UserError(f"strengths={strengths}, max_iter={max_iter}; expected numbers above 0.")
        self.strengths, self.max_iter = strengths, max_iter

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        from sklearn.model_selection import train_test_split

        (train, labels), (test, truth) = (
            (measured[name]["features"], measured[name]["label"]) for name in ("train", "test")
        )
        counts = np.bincount(labels)
        several = counts[labels] > 1  # a class of one image has none to hold out
        if (counts > 1).sum() < 2:
            raise UserError(
                f"Found {len(train)} training images of {(counts > 0).sum()} classes for a linear probe, expected two or more "
                "classes with two or more each; take more images, or leave the probe out."
            )
        best = self.strengths[0]
        if len(self.strengths) > 1:
            held_out, strata = max(round(0.2 * several.sum()), int((counts > 1).sum())), labels[several]
            x, x_held, y, y_held = train_test_split(
                train[several], strata, test_size=held_out, stratify=strata, random_state=0
            )
            x, y = np.concatenate([x, train[~several]]), np.concatenate([y, labels[~several]])
            best = max(self.strengths, key=lambda c: self._accuracy(c, x, y, x_held, y_held))
        accuracy = self._accuracy(best, train, labels, test, truth)
        return {"accuracy": accuracy, "C": best, "num_examples": len(test)}

    def _accuracy(self, strength: float, x: Features, y: Classes, x_test: Others, y_test: OtherClasses) -> float:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=self.max_iter))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the user chose max_iter
            return float(model.fit(x, y).score(x_test, y_test))
