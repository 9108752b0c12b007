"""Training images that lie on the devices, so that the host has next to nothing to do in a step."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, UInt8

from vit_jax.data.pipeline import Batch, TrainData
from vit_jax.data.source import Source
from vit_jax.data.transforms.device_ops import DEVICE_OPS, DeviceOp
from vit_jax.data.transforms.preprocess import parse_steps
from vit_jax.types import ByteImages, Rng

# Operations without chance, done once for each image.
FIXED = ("resize", "resize_small", "central_crop")


class ResidentData(TrainData):
    """The batches of TrainData, in its order, as {"index": int32 [rows], "label": ...}: the places of their images in `images`.

    `preprocess` begins with operations of FIXED, which are done once, and goes on with some of DEVICE_OPS, which `augmented`
    does in the step. The images take as many bytes of each device as they have pixels times channels; mesh.fsdp divides them.
    """

    def __init__(self, source: Source, preprocess: str, batch_size: int, seed: int, threads: int = 2, **options: Any):
        texts = [text.strip() for text in preprocess.split("|")] if preprocess.strip() else []
        count = next((i for i, text in enumerate(texts) if text.partition("(")[0].strip() not in FIXED), len(texts))
        self._random: list[DeviceOp] = parse_steps(preprocess, DEVICE_OPS, texts[count:], count)
        super().__init__(source, "|".join(texts[:count]), batch_size, seed, threads=threads, **options)
        self.images = self._load(threads)
        one = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), "uint8")
        shape = jax.eval_shape(self.augmented, jax.random.key(0), one).shape[1:]
        self.spec = dataclasses.replace(self.spec, image_shape=shape)

    def augmented(self, rng: Rng, images: ByteImages) -> UInt8[Array, "b h2 w2 c"]:
        """A global batch of images, augmented as the key says."""
        for index, op in enumerate(self._random):
            images = op(jax.random.fold_in(rng, index), images)
        return images

    def _load(self, threads: int) -> UInt8[np.ndarray, "n h w c"]:
        """All images; one that cannot be read is black, and counted, and never shown."""
        images = np.zeros((self.spec.num_examples, *self.spec.image_shape), np.uint8)

        def load(index: int) -> None:
            image = self._reader.read(index, 0, index)
            if image is not None:
                images[index] = image

        with ThreadPoolExecutor(max(1, threads)) as pool:
            for _ in pool.map(load, range(len(images))):
                pass
        return images

    def _make_batch(self, step: int) -> Batch:
        chosen = [self._readable_index(position) for position in self._positions(step)]
        labels = [self._reader.source.label(index) for index in chosen]
        return {
            "index": np.asarray(chosen, np.int32),
            "label": np.asarray(labels, np.float32 if self.spec.label_shape else np.int32),
        }

    def _readable_index(self, position: int) -> int:
        """The example at a global position, or the next one of its epoch's order that can be read."""
        indices = (self._index(position, ahead) for ahead in range(self.spec.num_examples))
        return next(index for index in indices if self._reader.is_readable(index))
