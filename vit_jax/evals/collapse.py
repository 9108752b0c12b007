"""Check whether features trained without labels still tell images apart."""

import logging
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError

# Below these, the features of any two images are the same for most purposes.
SMALLEST_RANK, SMALLEST_SPREAD = 3.0, 0.05


def effective_rank(features: Float[np.ndarray, "n d"]) -> float:
    """Return exp of the singular values' normalized entropy (RankMe, arXiv:2210.02885, equation 1); 1 to min(n, d)."""
    rows = features.astype(np.float64)
    gram = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    shares = singular / max(float(singular.sum()), 1e-300) + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(features: Float[np.ndarray, "n d"]) -> float:
    """Return the standard deviation of unit-length features times sqrt(d): 1 if spread evenly, 0 if all agree."""
    rows = features.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return float(np.sqrt(rows.shape[1]) * rows.std(axis=0).mean())


class Collapse(Evaluator):
    """`rank` (see effective_rank), `rank_share` of the width, `spread` and `std` of the features; warns of collapse.

    std: the mean standard deviation of a feature over the images.
    """

    needs = ("features",)
    own_classes = True

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        if len(source) < 2:
            raise UserError(f"Found {len(source)} image, expected at least 2 to compare their features.")

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({"features": outputs["features"]})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        features = measured[""]["features"]
        rank, spreads = effective_rank(features), spread(features)
        if rank < SMALLEST_RANK or spreads < SMALLEST_SPREAD:
            logging.getLogger("vit_jax").warning(
                "The features collapse: their effective rank is %.1f of %d and their spread %.3f of 1, so images cannot be told "
                "apart. Try a lower learning rate, a longer warm-up, a lower teacher temperature or stronger augmentation.",
                rank, features.shape[1], spreads,
            )  # fmt: skip
        std = float(features.std(axis=0, dtype=np.float64).mean())
        found = {"rank": rank, "rank_share": rank / features.shape[1], "spread": spreads, "std": std}
        return found | {"num_examples": len(features)}
