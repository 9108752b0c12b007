"""Measure the mean intersection over union of pixel classes."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vit_jax.data.source import IGNORED, Segments, Source
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError


def class_ious(confusion: Int[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """Return the intersection over union of each class, or NaN if it is neither true nor predicted anywhere."""
    right, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    union = true + predicted - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)


class MeanIou(Evaluator):
    """`miou`, `pixel_accuracy`, `loss`, `num_examples` and, with per_class, `iou/CLASS`.

    Counts are whole numbers over all labelled pixels of the data set, at the size of the labels. A class that is
    neither true nor predicted in any pixel is left out of the mean; one that is predicted but never true counts as 0.
    With multi_scale, predictions combine several scales and mirror images (see tasks/dense.py).
    """

    needs = ("segments", "loss")

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 8,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
        multi_scale: bool = False,
        per_class: bool = True,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        found = {key: field for key, field in self.spec.fields.items() if isinstance(field, Segments)}
        if len(found) != 1:
            raise UserError(
                f"miou.MeanIou measures one field of segments; found {', '.join(map(repr, self.spec.fields))}: take a source of "
                "segments.py."
            )
        ((self._key, field),) = found.items()
        self._names, self._per_class = field.class_names, per_class
        self._output = "segments_multi" if multi_scale else "segments"
        self.needs = (self._output, "loss")

    @property
    def class_names(self) -> tuple[str, ...]:
        """See Evaluator."""
        return self._names

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator; the sum is the confusion matrix of each image's pixels."""
        labels, found, n = batch[self._key].astype(jnp.int32), outputs[self._output].astype(jnp.int32), len(self._names)
        pairs = jnp.where(labels == IGNORED, n * n, labels * n + found).reshape(len(labels), -1)
        counts = jax.vmap(lambda x: jnp.zeros(n * n + 1, jnp.int32).at[x].add(1))(pairs)
        return Measured({"loss": outputs["loss"]}, {"confusion": counts[:, :-1].reshape(-1, n, n)})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        confusion, losses = measured[""]["confusion"], measured[""]["loss"]
        ious = class_ious(confusion)
        known = ~np.isnan(ious)
        result = {
            "miou": float(ious[known].mean()) if known.any() else 0.0,
            "pixel_accuracy": float(np.diag(confusion).sum() / max(1, confusion.sum())),
            "loss": float(losses.mean(dtype=np.float64)),
            "num_examples": len(losses),
        }
        unreadable = self.spec.num_examples - len(losses)
        result |= {"unreadable": unreadable} if unreadable else {}
        each = zip(self._names, ious.tolist(), strict=True)
        return result | ({f"iou/{name}": iou for name, iou in each if iou == iou} if self._per_class else {})
