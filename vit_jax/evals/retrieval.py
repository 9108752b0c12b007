"""Evaluate retrieval of texts by images, and of images by texts."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Bool, Float

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Count, Megabytes, Threads, UserError

ROWS = 1024  # queries compared at once


class Retrieval(Evaluator):
    """`image_to_text@k` and `text_to_image@k`: the fraction of queries with a correct answer among the k nearest.

    An image may have several captions, all correct (as in COCO and Flickr30k; arXiv:2103.00020, table 13); equal
    captions are one text, and all of its images are correct. At equal distance, wrong answers rank first, so that
    identical embeddings score nothing. `preprocess` ends in tokenize(NAME, length, captions).
    """

    needs = ("image_embedding", "text_embedding")
    own_classes = True

    def __init__(
        self,
        source: Source,
        preprocess: str,
        ks: tuple[Count, ...] = (1, 5, 10),
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        if not ks:
            raise UserError("ks is empty; expected ranks such as (1, 5, 10).")
        self.ks = ks

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        found, ids = outputs["text_embedding"], batch["text"]
        several = found.ndim == 3
        return Measured(
            {
                "image": outputs["image_embedding"],
                "text": found if several else found[:, None],
                "ids": ids if several else ids[:, None],
            }
        )

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        images, texts, ids = (measured[""][key] for key in ("image", "text", "ids"))
        _, first, which = np.unique(ids.reshape(-1, ids.shape[-1]), axis=0, return_index=True, return_inverse=True)
        belongs = np.zeros((len(images), len(first)), bool)
        belongs[np.repeat(np.arange(len(images)), ids.shape[1]), which.reshape(-1)] = True
        texts = texts.reshape(-1, texts.shape[-1])[first]
        to_text, to_image = ranks(images, texts, belongs), ranks(texts, images, belongs.T)
        results = {f"image_to_text@{k}": float((to_text < k).mean()) for k in self.ks}
        results |= {f"text_to_image@{k}": float((to_image < k).mean()) for k in self.ks}
        return results | {"num_images": len(images), "num_texts": len(texts)}


def ranks(
    queries: Float[np.ndarray, "q d"], answers: Float[np.ndarray, "a d"], right: Bool[np.ndarray, "q a"]
) -> np.ndarray:
    """Return, for each query, how many wrong answers are at least as near as its nearest correct one."""
    found = []
    for start in range(0, len(queries), ROWS):
        rows = slice(start, start + ROWS)
        near = queries[rows] @ answers.T
        best = np.where(right[rows], near, -np.inf).max(axis=1, keepdims=True)
        found.append((~right[rows] & ~(near < best)).sum(axis=1))
    return np.concatenate(found)
