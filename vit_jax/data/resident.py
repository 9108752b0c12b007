"""Keep training data on the devices, so that the host has almost nothing to do in a step."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.examples import Array, Layout
from vit_jax.data.pipeline import Batch, DataSpec, TrainData
from vit_jax.data.source import Source
from vit_jax.data.transforms.device_ops import DEVICE_OPS, transformed
from vit_jax.data.transforms.preprocess import parse_steps, split_spec
from vit_jax.types import BatchSize, Rng, Seed, Threads

# Deterministic operations, done once for each image.
FIXED = ("resize", "resize_small", "central_crop")


class ResidentData(TrainData):
    """The batches of TrainData, in its order, as {"index": int32 [rows]}: positions in `device_arrays`.

    `preprocess` begins with operations of FIXED, which are done once, and continues with operations of DEVICE_OPS,
    which `fetch` does in the step. Images take one byte per pixel and channel; every device holds a full copy unless
    mesh.fsdp is set.
    """

    def __init__(
        self, source: Source, preprocess: str, batch_size: BatchSize, seed: Seed, threads: Threads = 2, **options: Any
    ):
        texts = split_spec(preprocess)
        count = next((i for i, text in enumerate(texts) if text.partition("(")[0].strip() not in FIXED), len(texts))
        self._random = parse_steps(preprocess, DEVICE_OPS, texts[count:], count)
        super().__init__(source, "|".join(texts[:count]), batch_size, seed, threads=threads, **options)
        self.device_arrays = self._load(threads)
        one = {key: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for key, x in self.device_arrays.items()}
        fields = self._reader.fields
        for step in self._random:
            fields = step.fields(fields) if hasattr(step, "fields") else fields
        shapes = jax.eval_shape(self._augmented, jax.random.key(0), one)
        layout = {key: Array(x.shape[1:], x.dtype.name) for key, x in shapes.items()}
        self.spec = DataSpec(layout, self.spec.num_examples, fields)

    @property
    def layout(self) -> Layout:
        """See TrainData."""
        return {"index": Array((), "int32")}

    def fetch(self, arrays: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], rng: Rng) -> dict[str, jax.Array]:
        """Return the global batch of the examples at positions batch["index"], augmented with the key."""
        chosen = {key: jnp.take(jnp.asarray(array), batch["index"], axis=0) for key, array in arrays.items()}
        return self._augmented(rng, chosen)

    def _augmented(self, rng: Rng, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return transformed(self._random, rng, batch, self._reader.fields)

    def _load(self, threads: int) -> dict[str, np.ndarray]:
        """Load all examples; unreadable ones are zero, counted and never used."""
        count = self.spec.num_examples
        arrays = {key: np.zeros((count, *x.shape), x.dtype) for key, x in self._reader.layout.items()}

        def load(index: int) -> None:
            example = self._reader.read(index, 0, index)
            for key, array in (example or {}).items():
                arrays[key][index] = array

        with ThreadPoolExecutor(max(1, threads)) as pool:
            for _ in pool.map(load, range(count)):
                pass
        return arrays

    def _make_batch(self, step: int) -> Batch:
        chosen = [self._readable_index(position) for position in self._positions(step)]
        return {"index": np.asarray(chosen, np.int32)}

    def _readable_index(self, position: int) -> int:
        """Return the example at a global position, or the next readable one of its epoch's order."""
        indices = (self._index(position, ahead) for ahead in range(self.spec.num_examples))
        return next(index for index in indices if self._reader.is_readable(index))
