"""Measure the accuracy of a classifier on corrupted images."""

import logging
from collections.abc import Mapping

import jax
import numpy as np

from vit_jax.data.examples import Arrays as ExampleArrays
from vit_jax.data.pipeline import EvalData
from vit_jax.data.source import Label, Source, Spread
from vit_jax.evals.corruptions.kinds import KINDS, SEVERITIES, check, corrupt
from vit_jax.evals.corruptions.weather import frost_pictures
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError


class Corruptions(Evaluator):
    """`mean_accuracy` on images corrupted after preprocessing, also by kind and by severity (arXiv:1903.12261).

    Every kind is applied at every severity to `examples` evenly spread images (None for all). Without `kinds` all 15
    are used, or 14 if the frost photographs are missing. Results are named `severity1` and so on, and by kind. Raises
    UserError for an unknown kind or severity, and for frost in `kinds` without its photographs.
    """

    def __init__(
        self,
        source: Source,
        preprocess: str,
        kinds: list[str] | None = None,
        severities: tuple[int, ...] = SEVERITIES,
        examples: int | None = None,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        self.kinds, self.severities = tuple(available() if kinds is None else kinds), tuple(severities)
        check(self.kinds, self.severities)
        if not self.kinds or not self.severities or (examples is not None and examples < 1):
            raise UserError(
                f"kinds={kinds}, severities={severities}, examples={examples}; expected at least one of each."
            )
        if not isinstance(source.fields.get("label"), Label):
            raise UserError("Found several numbers for each image, expected one class: leave this evaluator out.")
        if "frost" in self.kinds:
            frost_pictures()  # raises an error now rather than after hours
        source = source if examples is None else Spread(source, examples)
        super().__init__(source, preprocess, batch_size, threads, cache_mb)

        clean = self.data
        self.passes = {f"{kind}/{s}": _Corrupted(clean, kind, s) for kind in self.kinds for s in self.severities}

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({"right": outputs["logits"].argmax(axis=1) == batch["label"]})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        right = [[measured[f"{kind}/{s}"]["right"] for s in self.severities] for kind in self.kinds]
        accuracy = np.array([[one.mean() for one in row] for row in right])
        return {
            **dict(zip(self.kinds, accuracy.mean(axis=1).tolist(), strict=True)),
            **{f"severity{s}": float(a) for s, a in zip(self.severities, accuracy.mean(axis=0), strict=True)},
            "mean_accuracy": float(accuracy.mean()),
            "num_examples": len(right[0][0]),
        }


def available() -> list[str]:
    """Return the kinds available here, and log why frost is not among them."""
    try:
        frost_pictures()
    except UserError as error:
        logging.warning(
            "corruptions: frost is left out, and mean_accuracy is of the %d others. %s", len(KINDS) - 1, error
        )
        return [kind for kind in KINDS if kind != "frost"]
    return list(KINDS)


class _Corrupted(EvalData):
    """The same data, corrupted in the worker threads; a function of the image's index, the kind and the severity."""

    def __init__(self, clean: EvalData, kind: str, severity: int):
        vars(self).update(vars(clean))  # the same reader, so that an image is read once for all kinds
        self._kind, self._severity = kind, severity

    def transformed(self, example: ExampleArrays, index: int) -> ExampleArrays:
        rng = np.random.default_rng([index, list(KINDS).index(self._kind), self._severity])
        return {**example, "image": corrupt(example["image"], self._kind, self._severity, rng)}
