"""Define what an evaluator reads and run it: each example exactly once, on any number of devices and processes."""

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.pipeline import DataSpec, EvalData
from vit_jax.data.source import Source
from vit_jax.tasks.task import with_images
from vit_jax.types import BatchSize, Megabytes, Threads, UserError

Arrays = Mapping[str, np.ndarray]


class Measured(NamedTuple):
    """The measurements of a batch; every array is [b, ...] with one entry per example.

    rows are kept for each example. sums are added up over the data set and not kept, for large values such as the
    confusion matrix of an image's pixels.
    """

    rows: Mapping[str, Any] = {}
    sums: Mapping[str, Any] = {}


class Evaluator(abc.ABC):
    """Measures a model on data and returns named numbers.

    passes: the data of each pass. needs: the outputs of Task.predict that `measure` reads. own_classes: its classes may
    differ from the task's, so predict does not receive the labels.
    """

    needs: tuple[str, ...] = ("logits",)
    own_classes: bool = False

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        data = EvalData(source, preprocess, batch_size, threads=threads, cache_mb=cache_mb)
        self.passes: dict[str, EvalData] = {"": data}

    @property
    def data(self) -> EvalData:
        """The data of the first pass."""
        return next(iter(self.passes.values()))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The evaluated classes; they are the task's unless own_classes is set."""
        return self.spec.class_names

    @property
    def spec(self) -> DataSpec:
        """Layout, number and fields of the examples of the first pass."""
        return self.data.spec

    def needs_in(self, name: str) -> tuple[str, ...]:
        """Return the outputs of Task.predict that `measure` reads in a pass; by default always `needs`."""
        return self.needs

    def check(self, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:  # noqa: B027
        """Raise UserError if outputs of these shapes cannot be evaluated; `needs` are known to exist."""

    @abc.abstractmethod
    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """Return the measurements of a batch; jitted."""

    @functools.cached_property
    def jitted(self) -> Callable[..., Any]:
        """`measure`, compiled: the rows with index and mask, and the sums over the batch."""

        def measure(batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]):
            rows, sums = self.measure(batch, outputs)

            def total(x: jax.Array) -> jax.Array:
                mask = batch["mask"].reshape(-1, *[1] * (x.ndim - 1))
                return jnp.where(mask, x, jnp.zeros((), x.dtype)).sum(axis=0)

            return {**rows, "index": batch["index"], "mask": batch["mask"]}, jax.tree.map(total, dict(sums))

        return jax.jit(measure)

    @abc.abstractmethod
    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """Return the metrics on the host, given each pass's rows in index order and its sums in 64 bits."""


def check_needs(
    name: str, evaluator: Evaluator, predict: Callable[[Any, dict[str, Any]], Mapping[str, Any]], weights: Any
):
    """Raise UserError if a task lacks outputs that an evaluator needs; computes nothing, so weights may be shapes."""
    checked: list[Any] = []
    for kind, data in evaluator.passes.items():
        needs = evaluator.needs_in(kind)
        if (data.spec.layout, needs) in checked:
            continue
        checked.append((data.spec.layout, needs))
        batch = {key: jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for key, x in data.spec.layout.items()}
        seen = shown(batch, evaluator.own_classes, data.spec)
        outputs = jax.eval_shape(lambda w, b: predict(w, with_images(b)), weights, seen)
        missing = [key for key in needs if key not in outputs]
        if missing:
            raise UserError(
                f"{name} needs {', '.join(missing)}, which the task does not give; it gives {', '.join(sorted(outputs))}: use "
                "another evaluator, or a task that returns the missing outputs."
            )
        if data is evaluator.data:
            evaluator.check(outputs)
        extra = {"mask": jax.ShapeDtypeStruct((2,), "bool"), "index": jax.ShapeDtypeStruct((2,), "int32")}
        measured = jax.eval_shape(evaluator.measure, batch | extra, {key: outputs[key] for key in needs})
        _check_measured(name, measured)


def _check_measured(name: str, measured: Any) -> None:
    """Raise UserError unless `measure` returns one entry for each of 2 examples."""
    if not isinstance(measured, Measured):
        raise UserError(f"{name}: measure returns a {type(measured).__name__}; expected Measured(rows, sums).")
    for kind, arrays in zip(Measured._fields, measured, strict=True):
        for key, array in arrays.items():
            if not array.shape or array.shape[0] != 2:
                raise UserError(
                    f"{name}: measure returns {key!r} of shape {array.shape} among the {kind} of 2 examples; expected one "
                    "entry for each example, [b, ...]."
                )


def shown(batch: Mapping[str, Any], own_classes: bool, spec: DataSpec) -> dict[str, Any]:
    """Return the part of a batch that predict sees: all but labels of classes that the task may not know."""
    labels = {key for key, field in spec.fields.items() if hasattr(field, "class_names")} if own_classes else set()
    return {key: x for key, x in batch.items() if key not in {"mask", "index", *labels}}


# (weights, batch of this process's rows, keys of predict, keys hidden from predict) -> (the global batch, outputs)
Predict = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


def evaluate(evaluator: Evaluator, predict: Predict, weights: Any) -> tuple[dict[str, float], dict[str, Arrays]]:
    """Return the metrics of an evaluator, and the measurements of each pass.

    Masked rows are removed by `where`, because 0 * NaN in a product would propagate into the sums.
    """
    results: dict[str, Arrays] = {}
    for name, data in evaluator.passes.items():
        rows: list[dict[str, np.ndarray]] = []
        totals: dict[str, np.ndarray] = {}
        hidden = set(data.spec.layout) - set(shown(data.spec.layout, evaluator.own_classes, data.spec))
        for batch in data:
            found, sums = jax.device_get(evaluator.jitted(*predict(weights, batch, evaluator.needs_in(name), hidden)))
            mask = found.pop("mask")
            rows.append({key: x[mask] for key, x in found.items()})
            for key, x in sums.items():
                wide = x.astype(np.int64 if np.issubdtype(x.dtype, np.integer) else np.float64)
                totals[key] = totals[key] + wide if key in totals else wide
        stacked = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        order = np.argsort(stacked["index"], kind="stable")
        results[name] = {key: x[order] for key, x in stacked.items()} | totals
    return checked_result(evaluator, evaluator.result(results)), results


def checked_result(evaluator: Evaluator, found: Any) -> dict[str, float]:
    """Return the result of an evaluator; raises UserError unless it maps names to numbers."""
    name = f"{type(evaluator).__name__}.result"
    if not isinstance(found, dict):
        raise UserError(f"{name} returns a {type(found).__name__}; expected a dict of names and numbers.")
    wrong = [f"{key!r} of shape {np.shape(value)}" for key, value in found.items() if np.shape(value)]
    if wrong:
        raise UserError(f"{name} returns {', '.join(wrong)}; expected one number for each name.")
    return found


def shard(evaluator: Evaluator, rows_of: Callable[[int], Sequence[int]]) -> None:
    """Let this process read only its own rows of each batch; see EvalData.shard."""
    for data in evaluator.passes.values():
        data.shard(rows_of)
