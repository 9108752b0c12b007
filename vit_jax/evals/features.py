"""Share the base of feature evaluators: own training images, with labels that the task need not know."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float, Int

from vit_jax.data.pipeline import EvalData
from vit_jax.data.source import Label, Source
from vit_jax.evals.evaluator import Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError

Features = Float[np.ndarray, "n d"]
Classes = Int[np.ndarray, "n"]
# For a second set of examples.
Others = Float[np.ndarray, "m d"]
OtherClasses = Int[np.ndarray, " m"]


class FromFeatures(Evaluator):
    """An evaluator that learns from the features of the images in `train` and is tested on `source`.

    The passes are "train" and "test"; their rows are `features` and `label`.
    """

    needs = ("features",)
    own_classes = True

    def __init__(
        self,
        source: Source,
        train: Source,
        preprocess: str,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        training = EvalData(train, preprocess, batch_size, threads=threads, cache_mb=cache_mb)
        self.passes = {"test": self.data, "train": training}
        both = [s.fields.get("label") for s in (train, source)]
        if both[0] != both[1] or not isinstance(both[0], Label):
            raise UserError(
                f"The training images have {len(train.class_names)} classes such as {train.class_names[:3]}, those to evaluate "
                f"{len(source.class_names)} such as {source.class_names[:3]}; expected the same classes, one for each image."
            )

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({"features": outputs["features"], "label": batch["label"]})
