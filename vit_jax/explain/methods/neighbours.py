"""Find the most similar patches of other images, such as the training images."""

from collections.abc import Sequence

import numpy as np

from vit_jax.data.source import Source, Spread, UnreadableImage, decoded
from vit_jax.explain.method import Arrays, Figure, Look, Method, check_point, panels, short
from vit_jax.explain.methods.similarity import unit
from vit_jax.explain.network import ByteImages, Network, Targets
from vit_jax.types import UserError
from vit_jax.viz.panels import Panel

BATCH = 64


class Neighbours(Method):
    """The k patches with the largest feature cosine, from at most `most` images spread evenly over the data.

    point: see Similarity. data: by default the model's training data. One patch per image is taken. Arrays, all [b, k]:
    `index` of the image, `row` and `column` of the patch, `similarity`; `neighbours` [b, k, h, w, c] are the images.
    """

    title = "nearest patches"

    def __init__(self, data: Source | None, k: int = 8, point: tuple[float, float] = (0.5, 0.5), most: int = 1000):
        check_point(point)
        if k < 1 or most < k:
            raise UserError(f"--method.k={k}, --method.most={most}: expected 1 <= k <= most.")
        self._data, self._k, self._point, self._most = data, k, point, most

    def check(self, network: Network) -> None:
        """See Method."""
        network.need_tokens("its neighbours")
        if self._data is None:
            raise UserError(f"{network.name} does not say what it was trained on; give --data=folder:PATH or another.")
        if "image" not in self._data.fields:
            raise UserError(f"Found data without images, only {', '.join(self._data.fields)}; give --data of images.")

    def arrays(self, network: Network, images: ByteImages, targets: Targets | None) -> Arrays:
        """See Method."""
        assert self._data is not None
        row, column = network.patch_at(self._point)
        queries = unit(network.patch_features(images))[:, row, column]
        best: list[np.ndarray] = []  # rows of (similarity, image, patch) for each query
        kept: list[np.ndarray] = []
        for batch in self._batches(network):
            similarities = np.einsum("qd,brcd->qbrc", queries, unit(network.patch_features(batch)))
            flat = similarities.reshape(*similarities.shape[:2], -1)
            numbers = np.broadcast_to(np.arange(len(kept), len(kept) + len(batch)), flat.shape[:2])
            best.append(np.stack([flat.max(axis=2), numbers, flat.argmax(axis=2)], axis=-1))
            kept += list(batch)
        if not kept:
            raise UserError("None of the images of the data can be read; give another --data.")
        found = np.concatenate(best, axis=1)
        order = np.argsort(-found[:, :, 0], axis=1, kind="stable")[:, : self._k]
        found = np.take_along_axis(found, order[:, :, None], axis=1)
        number, patch = found[:, :, 1].astype(int), found[:, :, 2].astype(int)
        return {
            "similarity": found[:, :, 0].astype(np.float32),
            "index": number,
            "row": patch // network.grid[1],
            "column": patch % network.grid[1],
            "neighbours": np.stack([[kept[i] for i in one] for one in number]),
        }

    def _batches(self, network: Network):
        """Yield the readable images of the data, preprocessed for the network."""
        assert self._data is not None
        source, batch = Spread(self._data, self._most), []
        for index in range(len(source)):
            try:
                image = source[index]["image"]
                batch.append(network.loaded.preprocess(decoded(image)))
            except UnreadableImage:
                continue
            if len(batch) == BATCH:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)

    def figures(self, looks: Sequence[Look]) -> list[Figure]:
        """See Method."""
        return [
            panels(self.title, looks, index, [self._row(look, index) for look in looks])
            for index in range(len(looks[0].names))
        ]

    def _row(self, look: Look, index: int) -> list[Panel]:
        (rows, columns), (height, width, _) = look.network.centers, look.network.loaded.image_shape
        found = {key: x[index] for key, x in look.arrays.items()}
        return [
            Panel(short(look.network.name, 30), image=look.images[index], point=self._point),
            *(
                Panel(
                    f"cosine {found['similarity'][i]:.2f}",
                    image=found["neighbours"][i],
                    point=(rows[found["row"][i]] / height, columns[found["column"][i]] / width),
                )
                for i in range(len(found["index"]))
            ),
        ]
