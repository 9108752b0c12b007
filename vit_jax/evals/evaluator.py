"""What a measurement is given and what it gives back."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from vit_jax.data.pipeline import EvalData, Spec
from vit_jax.data.source import Source

# This process's rows of a batch as numpy arrays -> the outputs of Task.predict and everything else but the images for the whole
# batch, as numpy arrays.
Predict = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def unlabelled(predict: Predict) -> Predict:
    """The same with a label that the model is not shown, as it may not know it, and so without a loss."""

    def hidden(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = predict({"hidden" if key == "label" else key: value for key, value in batch.items()})
        return {"label" if key == "hidden" else key: value for key, value in out.items()}

    return hidden


class Evaluator(abc.ABC):
    """Runs a predict function over a dataset, each example exactly once, and returns named numbers.

    own_classes: the model need not know its classes. needs_head: it reads the model's logits, not its features alone.
    """

    own_classes: bool = False
    needs_head: bool = True

    def __init__(self, source: Source, preprocess: str, batch_size: int = 256, threads: int = 2, cache_mb: int = 2048):
        self.data = EvalData(source, preprocess, batch_size, threads=threads, cache_mb=cache_mb)

    @property
    def spec(self) -> Spec:
        """Shape, number and class names of the images."""
        return self.data.spec

    def check(self, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:  # noqa: B027
        """Raises UserError where a model whose Task.predict gives such outputs cannot be measured; by default any can."""

    def divide(self, rows_of: Callable[[int], Sequence[int]]) -> None:
        """Has this process read just its rows of each batch (see EvalData.divide); the others' outputs come with its own."""
        for data in vars(self).values():
            if isinstance(data, EvalData):
                data.divide(rows_of)

    def outputs(self, predict: Predict, data: EvalData | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Labels and indices of all processes' images with the model's outputs, batch by batch.

        Padding and unreadable images are left out.
        """
        for batch in self.data if data is None else data:
            whole = batch | predict(batch)
            yield {key: value[whole["mask"]] for key, value in whole.items() if key != "image"}

    def collected(self, predict: Predict, *keys: str, data: EvalData | None = None) -> tuple[np.ndarray, ...]:
        """Those of `outputs` that `keys` name, for all images; nothing else is kept in memory."""
        rows = [[out[key] for key in keys] for out in self.outputs(predict, data)]
        return tuple(map(np.concatenate, zip(*rows, strict=True)))

    @abc.abstractmethod
    def __call__(self, predict: Predict) -> dict[str, float]:
        """The measurement."""
