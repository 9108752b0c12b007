"""Accuracy on the variants of ImageNet's test set, for models of its 1,000 classes."""

from typing import Literal

import numpy as np

from vit_jax.data.source import Source
from vit_jax.evals.evaluator import Evaluator, Predict
from vit_jax.types import UserError

Variant = Literal["real", "v2", "a", "r", "sketch"]
CLASSES = 1000


class ImageNet(Evaluator):
    """`accuracy` on a variant whose labels are those of ImageNet in their order, as all of TFDS's are.

    real: any of an image's labels is right, images without one are left out (arXiv:2006.07159; source tfds.Tfds with
    name="imagenet2012_real", label_key="real_label"). a, r: imagenet_a and imagenet_r have 200 of the classes, and the model
    chooses among those (arXiv:1907.07174, 2006.16241). v2, sketch: imagenet_v2 and imagenet_sketch (arXiv:1902.10811,
    1905.13549) have all. The classes need not be named as the model names them, only be ImageNet's.
    """

    own_classes = True

    def __init__(
        self,
        variant: Variant,
        source: Source,
        preprocess: str,
        batch_size: int = 256,
        threads: int = 2,
        cache_mb: int = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        self.variant = variant
        if len(source.class_names) != CLASSES or bool(source.label_shape) != (variant == "real"):
            several = "several labels" if source.label_shape else "one label"
            wanted = "several labels, as label_key='real_label' gives" if variant == "real" else "one label"
            raise UserError(
                f"Found {len(source.class_names)} classes and {several} for each image, expected the {CLASSES} of ImageNet and "
                f"{wanted} for variant={variant!r}."
            )

    def __call__(self, predict: Predict) -> dict[str, float]:
        """See Evaluator; raises UserError for a model of another number of classes."""
        logits, labels = [], []
        for batch in self.data:
            out = predict({"image": batch["image"]})["logits"][batch["mask"]]
            if out.shape[1] != CLASSES:
                raise UserError(f"The model has {out.shape[1]} classes; the variants of ImageNet need its {CLASSES}.")
            logits.append(out)
            labels.append(batch["label"][batch["mask"]])
        scores, truth = np.concatenate(logits), np.concatenate(labels)
        if self.variant == "real":
            labelled = truth.any(axis=1)
            scores, truth = scores[labelled], truth[labelled]
            right = np.take_along_axis(truth, scores.argmax(axis=1)[:, None], axis=1)[:, 0] > 0
        else:
            present = np.unique(truth) if self.variant in ("a", "r") else np.arange(CLASSES)
            right = present[scores[:, present].argmax(axis=1)] == truth
        if not len(right):
            raise UserError("Found no image with a label, expected at least one.")
        return {"accuracy": float(right.mean()), "num_examples": len(right)}
