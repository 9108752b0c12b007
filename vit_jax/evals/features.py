"""What measurements of features share: training images of their own, whose labels the model need not know."""

import numpy as np
from jaxtyping import Float, Int

from vit_jax.data.pipeline import EvalData
from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Evaluator, Predict, unlabelled
from vit_jax.types import UserError

Features = Float[np.ndarray, "n d"]
Classes = Int[np.ndarray, "n"]
# As many others.
Others = Float[np.ndarray, "m d"]
OtherClasses = Int[np.ndarray, " m"]


class FromFeatures(Evaluator):
    """An evaluator that learns from the features of the images of `train` and is tested on those of `source`."""

    own_classes = True
    needs_head = False

    def __init__(
        self,
        source: Source,
        train: Source,
        preprocess: str,
        batch_size: int = 256,
        threads: int = 2,
        cache_mb: int = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        self.train = EvalData(train, preprocess, batch_size, threads=threads, cache_mb=cache_mb)
        if train.class_names != source.class_names or train.label_shape or source.label_shape:
            raise UserError(
                f"The training images have {len(train.class_names)} classes such as {train.class_names[:3]}, those to evaluate "
                f"{len(source.class_names)} such as {source.class_names[:3]}; expected the same classes, one for each image."
            )

    def features(self, predict: Predict, data: EvalData) -> tuple[Features, Classes]:
        """The features and the classes of all its images."""
        features, labels = self.collected(unlabelled(predict), "features", "label", data=data)
        return features, labels
