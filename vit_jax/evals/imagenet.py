"""Measure accuracy on the variants of ImageNet's test set, for models of its 1,000 classes."""

from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np

from vit_jax.data.open import Relabelled
from vit_jax.data.source import Label, Source
from vit_jax.data.sources.tfds import imagenet_names
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError

Variant = Literal["real", "v2", "a", "r", "sketch"]
CLASSES = 1000
PART = 200  # the number of classes in ImageNet-A and in ImageNet-R


class ImageNet(Evaluator):
    """`accuracy` on a `variant` of ImageNet, from TFDS or a folder of classes.

    real: any of an image's labels is correct, and images without labels are left out (arXiv:2006.07159; source
    tfds.Tfds with name="imagenet2012_real", label_key="real_label"). a, r: ImageNet-A and ImageNet-R have 200 of the
    classes, and the model chooses among them (arXiv:1907.07174, 2006.16241). v2, sketch: all 1,000 (arXiv:1902.10811,
    1905.13549). The data's classes are matched by name: WordNet ids, or positions from 0 to 999 as in the folders of
    ImageNet-v2. The names of the model's classes do not matter, but they must be in the order of the WordNet ids.
    """

    own_classes = True

    def __init__(
        self,
        variant: Variant,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        single = isinstance(source.fields.get("label"), Label)
        if single == (variant == "real"):
            found, wanted = ("one label", "several") if single else ("several labels", "one")
            raise UserError(
                f"Found {found} for each image, expected {wanted} for variant={variant!r}; several are those that "
                "tfds:imagenet2012_real has under label_key='real_label'."
            )
        super().__init__(_in_order(source), preprocess, batch_size, threads, cache_mb)
        self.variant = variant

    def check(self, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """See Evaluator."""
        logits = outputs["logits"].shape[1]
        if logits != CLASSES:
            raise UserError(f"The model gives {logits} logits; the variants of ImageNet need its {CLASSES}.")

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({"logits": outputs["logits"], "label": batch["label"]})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator; raises UserError if A or R is incomplete."""
        scores, truth = measured[""]["logits"], measured[""]["label"]
        if self.variant == "real":
            labelled = truth.any(axis=1)
            scores, truth = scores[labelled], truth[labelled]
            right = np.take_along_axis(truth, scores.argmax(axis=1)[:, None], axis=1)[:, 0] > 0
        else:
            among = self._part(truth) if self.variant in ("a", "r") else np.arange(CLASSES)
            right = among[scores[:, among].argmax(axis=1)] == truth
        if not len(right):
            raise UserError("Found no image with a label, expected at least one.")
        return {"accuracy": float(right.mean()), "num_examples": len(right)}

    def _part(self, labels: np.ndarray) -> np.ndarray:
        present = np.unique(labels)
        if len(present) != PART:
            # With fewer classes the accuracy would be higher.
            raise UserError(
                f"Found images of {len(present)} classes, expected the {PART} of variant={self.variant!r}: give all its images."
            )
        return present


def _in_order(source: Source) -> Source:
    """Return the source with ImageNet's classes in their usual order."""
    for names in (imagenet_names(), tuple(map(str, range(CLASSES)))):
        if set(source.class_names) <= set(names):
            return Relabelled(source, names)
    raise UserError(
        f"Found {len(source.class_names)} classes such as {source.class_names[:3]}, expected those of ImageNet: WordNet "
        "numbers such as n01440764, or positions from 0 to 999."
    )
