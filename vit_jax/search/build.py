"""Build an index of a folder, and update it."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax.data.source import UnreadableImage
from vit_jax.inference import BATCH
from vit_jax.search.embed import Embedder
from vit_jax.search.index import Index, Shard
from vit_jax.types import UserError

SHARD = 4096  # images


def add_folder(
    index: Index, embedder: Embedder, root: str, names: Sequence[str], report: Callable[[str], None], size: int = SHARD
) -> dict[str, str]:
    """Add the images of a folder that the index lacks, one shard at a time; return why unreadable ones failed.

    The vectors do not depend on where an earlier build was killed: shards follow from the names only. A label is the
    name of the folder that contains the image.
    """
    root, known = os.path.abspath(root), index.known
    missing = [name for name in names if (root, name) not in known]
    failed: dict[str, str] = {}

    def read(name: str) -> np.ndarray | str:
        try:
            return embedder.loaded.preprocess(os.path.join(root, name))
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor() as threads:
        for start in range(0, len(missing), size):
            kept: list[str] = []
            vectors, unreadable = [], dict[str, str]()
            chunk = missing[start : start + size]
            for at in range(0, len(chunk), BATCH):
                several = chunk[at : at + BATCH]
                found = dict(zip(several, threads.map(read, several), strict=True))
                unreadable |= {name: reason for name, reason in found.items() if isinstance(reason, str)}
                images = {name: image for name, image in found.items() if not isinstance(image, str)}
                kept += images
                vectors += [embedder(list(images.values()))] if images else []
            failed |= unreadable
            if kept:
                labels = [os.path.basename(os.path.dirname(name)) for name in kept]
                index.append(Shard(root, kept, labels, unreadable, ""), np.concatenate(vectors))
            report(f"{min(start + size, len(missing)):,} of {len(missing):,} images")
    if not index.names:
        raise UserError(f"None of the {len(names):,} images in {root} can be read, so there is nothing to search.")
    return failed
