"""Turn images into vectors, using any model output with one vector per image or per patch."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import trees
from vit_jax.inference import BATCH, Loaded
from vit_jax.search.index import About, Vectors, unit
from vit_jax.types import UserError

Box = tuple[float, float, float, float]


class Embedder:
    """A model and one of its outputs, such as "features", or "tokens" for one vector per patch."""

    def __init__(self, reference: str, loaded: Loaded, feature: str):
        self.loaded = loaded
        batch = {"image": jax.ShapeDtypeStruct((1, *loaded.image_shape), "uint8")}
        shapes = jax.eval_shape(loaded.task.predict, loaded.weights, batch)
        found = {name: x.shape[1:] for name, x in shapes.items() if x.ndim in (2, 3)}
        if feature not in found:
            raise UserError(f"--feature={feature!r}: the model gives {', '.join(found)}; choose among these.")
        per_image, length = found[feature] if len(found[feature]) == 2 else (1, *found[feature])
        self.about = About(reference, feature, fingerprint(loaded, feature), length, per_image)

    def __call__(self, images: Sequence[np.ndarray]) -> Vectors:
        """Return the unit vectors [b * per_image, d] of preprocessed images; batches are padded to one size."""
        found = []
        for start in range(0, len(images), BATCH):
            several = images[start : start + BATCH]
            batch = np.zeros((BATCH, *self.loaded.image_shape), np.uint8)
            batch[: len(several)] = several
            found.append(self.outputs(batch)[: len(several)])
        return self._units(np.concatenate(found).reshape(-1, self.about.length))

    def outputs(self, batch: np.ndarray) -> np.ndarray:
        """Return the unnormalized feature of preprocessed images."""
        feature = self.about.feature
        _, found = self.loaded.predictor(self.loaded.weights, {"image": batch}, [feature])
        return np.asarray(found[feature], np.float32)[: len(batch)]

    def query(self, picture: Any, box: Box | None = None) -> Vectors:
        """Return the vector [1, d] of a picture (path, PIL image or array), or of a part of it.

        box: (left, top, right, bottom) as fractions of width and height. If there is one vector per image, the part is
        cut out and embedded; if there is one per patch, the patches in it, which saw the whole picture, are averaged.
        """
        if self.about.per_image == 1:
            image = (
                self.loaded.preprocess(picture)
                if box is None
                else self.loaded.preprocess(cut(picture, box, self.loaded))
            )
            return self._units(self.outputs(image[None]))
        tokens = self.outputs(self.loaded.preprocess(picture)[None])[0]
        inside = (
            np.ones(len(tokens), bool) if box is None else self._patches_in(box, self.loaded.decoded(picture).shape)
        )
        return self._units(tokens[inside].mean(axis=0, keepdims=True))

    def _patches_in(self, box: Box, shape: tuple[int, ...]) -> np.ndarray:
        """Return which patches of a picture of this shape have their centre in a box; at least the nearest one.

        Preprocessed ramps of the coordinates tell where each patch comes from. Raises UserError if the box is cropped away.
        """
        rows, columns = self.grid
        height, width, _ = shape
        across = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
        down = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, (height, width))
        left, top, right, bottom = box
        inside, distance = np.ones(rows * columns, bool), np.zeros(rows * columns)
        for ramp, low, high in ((across, left, right), (down, top, bottom)):
            seen = self.loaded.preprocess(np.round(255 * ramp).astype(np.uint8))[:, :, 0] / 255
            if high < seen.min() - 1 / 255 or low > seen.max() + 1 / 255:
                raise UserError(
                    f"The preprocessing {self.loaded.preprocess_spec!r} crops this part of the picture off; give another box, or "
                    "search an index of --feature=features, which embeds the part alone."
                )
            of_patch = seen[: len(seen) // rows * rows, : seen.shape[1] // columns * columns]
            centre = of_patch.reshape(rows, of_patch.shape[0] // rows, columns, -1).mean(axis=(1, 3)).reshape(-1)
            inside &= (centre >= low) & (centre <= high)
            distance += np.square(centre - (low + high) / 2)
        inside[distance.argmin()] |= not inside.any()
        return inside

    def describe(self, text: str) -> Vectors:
        """Return the vector [1, d] of a text; raises UserError unless the index was built with `image_embedding`."""
        if self.about.feature != "image_embedding":
            raise UserError(
                f"--text={text!r} needs an index built with --feature=image_embedding, by a model of images and texts; found "
                f"{self.about.feature}."
            )
        return self._units(self.loaded.embed_texts([text]))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        model = self.loaded.model
        rows, columns = model.grid(self.loaded.image_shape[:2]) if hasattr(model, "grid") else (1, self.about.per_image)
        if rows * columns != self.about.per_image:
            raise UserError(
                f"A {type(model).__name__} has {self.about.per_image} vectors that are not on a grid of patches."
            )
        return rows, columns

    def _units(self, vectors: np.ndarray) -> Vectors:
        if not np.isfinite(vectors).all():
            raise UserError("The model gives features that are not finite; its weights are damaged or diverged.")
        return unit(vectors)


def cut(picture: Any, box: Box, loaded: Loaded) -> np.ndarray:
    """Cut out a part of a picture, at least one pixel."""
    pixels = loaded.decoded(picture)
    height, width = pixels.shape[:2]
    left, top = (min(int(share * size), size - 1) for share, size in zip(box[:2], (width, height), strict=True))
    right, bottom = (round(share * size) for share, size in zip(box[2:], (width, height), strict=True))
    return pixels[top : max(bottom, top + 1), left : max(right, left + 1)]


def fingerprint(loaded: Loaded, feature: str) -> str:
    """Return a hash of everything a vector depends on: weights, network, normalisation, preprocessing and output."""
    digest = hashlib.sha256()
    facts = [loaded.preprocess_spec, loaded.image_shape, feature, repr(loaded.model)]
    facts += [list(np.ravel(getattr(loaded.task, key, ()))) for key in ("mean", "std")]
    digest.update(json.dumps(facts, default=str).encode())
    encoder = feature in ("features", "tokens")
    arrays = loaded.arrays if encoder else trees.flatten(jax.device_get(loaded.weights))
    for name, leaf in sorted(arrays.items()):
        digest.update(f"{name}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:32]
