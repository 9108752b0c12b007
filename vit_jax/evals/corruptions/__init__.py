"""How much of its accuracy a classifier keeps on corrupted images."""

import numpy as np

from vit_jax.data.pipeline import Batch, EvalData
from vit_jax.data.source import Source, Spread
from vit_jax.evals.corruptions.kinds import KINDS, SEVERITIES, check, corrupt
from vit_jax.evals.corruptions.weather import frost_pictures
from vit_jax.evals.evaluator import Evaluator, Predict
from vit_jax.types import UserError


class Corruptions(Evaluator):
    """`mean_accuracy` on images corrupted after preprocessing, and its parts by kind and by severity (arXiv:1903.12261).

    Every kind (None is all 15) at every severity, of so many `examples`, evenly spread (None is all). Results are named
    `severity1` and so on, and as the kinds are. Raises UserError for an unknown kind or severity, and for frost without its
    photographs.
    """

    def __init__(
        self,
        source: Source,
        preprocess: str,
        kinds: list[str] | None = None,
        severities: tuple[int, ...] = SEVERITIES,
        examples: int | None = None,
        batch_size: int = 256,
        threads: int = 2,
        cache_mb: int = 2048,
    ):
        self.kinds, self.severities = tuple(KINDS if kinds is None else kinds), tuple(severities)
        check(self.kinds, self.severities)
        if not self.kinds or not self.severities or (examples is not None and examples < 1):
            raise UserError(
                f"kinds={kinds}, severities={severities}, examples={examples}; expected at least one of each."
            )
        if source.label_shape:
            raise UserError("Found several numbers for each image, expected one class: leave this evaluator out.")
        if "frost" in self.kinds:
            frost_pictures()  # an error now rather than after hours
        source = source if examples is None else Spread(source, examples)
        super().__init__(source, preprocess, batch_size, threads, cache_mb)

    def __call__(self, predict: Predict) -> dict[str, float]:
        """See Evaluator."""
        accuracy = np.zeros((len(self.kinds), len(self.severities)))
        for row, kind in enumerate(self.kinds):
            for column, severity in enumerate(self.severities):
                outputs = self.outputs(predict, _Corrupted(self.data, kind, severity))
                right = np.concatenate([out["logits"].argmax(axis=1) == out["label"] for out in outputs])
                accuracy[row, column] = right.mean()
        return {
            **dict(zip(self.kinds, accuracy.mean(axis=1).tolist(), strict=True)),
            **{f"severity{s}": float(a) for s, a in zip(self.severities, accuracy.mean(axis=0), strict=True)},
            "mean_accuracy": float(accuracy.mean()),
            "num_examples": len(right),
        }


class _Corrupted(EvalData):
    """The same data, corrupted in the worker threads; an image's corruption is a function of its index, kind and severity."""

    def __init__(self, clean: EvalData, kind: str, severity: int):
        vars(self).update(vars(clean))  # the same reader, so that an image is read once for all kinds
        self._kind, self._severity = kind, severity

    def _make_batch(self, step: int) -> Batch:
        batch = super()._make_batch(step)
        for row in np.flatnonzero(batch["mask"]):
            rng = np.random.default_rng([int(batch["index"][row]), list(KINDS).index(self._kind), self._severity])
            batch["image"][row] = corrupt(batch["image"][row], self._kind, self._severity, rng)
        return batch
