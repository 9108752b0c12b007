"""Predict with a task on batches of any number of rows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.tasks.task import Task, Weights, with_images

Outputs = dict[str, np.ndarray]


class Predictor:
    """Run task.predict on batches of any number of rows, compiled once for each shape and set of outputs."""

    def __init__(self, task: Task, mesh: Mesh):
        self._task, self._mesh = task, mesh
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self, weights: Weights, batch: Mapping[str, np.ndarray], needs: Sequence[str] | None = None,
        hidden: Collection[str] = (),
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:  # fmt: skip
        """Return the global batch and the outputs for it, on the devices; rows are padded to a multiple of the shards.

        needs: the outputs to compute, by default all but the task's large ones. hidden: keys that predict does not see.
        """
        key = None if needs is None else tuple(needs), frozenset(hidden)
        if key not in self._compiled:
            unseen = {"mask", "index", *hidden}

            def outputs(weights: Weights, batch: dict[str, jax.Array]):
                seen = {name: x for name, x in batch.items() if name not in unseen}
                found = self._task.predict(weights, with_images(seen))
                chosen = [name for name in found if name not in self._task.large] if needs is None else needs
                return batch, {name: found[name] for name in chosen}

            whole = sharding.everywhere(self._mesh)
            self._compiled[key] = jax.jit(sharding.on_mesh(outputs, self._mesh), out_shardings=whole)
        if jax.process_count() == 1:
            more = -len(next(iter(batch.values()))) % sharding.batch_shards(self._mesh)
            batch = {name: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) if more else x for name, x in batch.items()}
        return self._compiled[key](weights, sharding.put_batch(batch, self._mesh))

    def outputs(self, weights: Weights, batch: Mapping[str, np.ndarray]) -> Outputs:
        """Return all outputs for the rows of a batch, on the host."""
        rows = len(next(iter(batch.values())))
        _, found = self(weights, batch)
        return {name: x[:rows] for name, x in jax.device_get(found).items()}
