"""Turn the bytes of a photograph into a JSON answer."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.decode import PILLOW_FORMATS, decode
from vit_jax.data.source import UnreadableImage
from vit_jax.inference import Loaded, Outputs
from vit_jax.printable import line
from vit_jax.search.index import unit
from vit_jax.search.nearest import Searcher
from vit_jax.search.sheet import thumbnail


def read_photograph(data: bytes, loaded: Loaded, most_pixels: int) -> np.ndarray:
    """Return a preprocessed photograph; raises UnreadableImage, before decoding if it has too many pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as file:
            width, height = file.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage(f"it has far more than the {most_pixels:,} pixels that are taken") from None
    except Exception as error:  # Pillow raises any error on damaged bytes
        raise UnreadableImage("not an image in a known format") from error
    if width * height > most_pixels:
        raise UnreadableImage(f"it has {width} x {height} pixels; at most {most_pixels:,} are taken")
    return loaded.preprocess(decode(data, loaded.image_shape[2]))


def as_answer(
    loaded: Loaded, outputs: Outputs, image: np.ndarray | None, grid: tuple[int, int] | None, top: int, searcher: Searcher | None,
    neighbours: int,
) -> dict[str, Any]:  # fmt: skip
    """Return an answer as JSON: classes or numbers, the preprocessed image, its attention, and similar pictures."""
    answer: dict[str, Any] = {}
    if image is not None:
        answer["image"] = _as_url(image)
    if "probs" in outputs:
        best = np.argsort(-outputs["probs"], kind="stable")[:top]
        answer["classes"] = [
            {"label": line(loaded.class_names[i]), "probability": round(float(outputs["probs"][i]), 6)} for i in best
        ]
    if "values" in outputs:
        pairs = zip(loaded.class_names, outputs["values"].tolist(), strict=True)
        answer["values"] = [{"name": line(name), "value": value} for name, value in pairs]
    if grid is not None and "patches" in outputs:
        answer["attention"] = {
            "grid": grid,
            "head": _levels(outputs["head"][None]),
            "patches": _levels(outputs["patches"]),
        }
    if searcher is not None and neighbours:
        answer["neighbours"] = similar(outputs, searcher, neighbours)
    return answer


def similar(outputs: Outputs, searcher: Searcher, count: int) -> list[dict[str, Any]]:
    """Return the most similar pictures of the index with thumbnails; names are relative to the indexed folder."""
    index = searcher.index
    vector = unit(outputs[index.about.feature].reshape(-1, index.about.length).mean(axis=0, keepdims=True))
    return [
        {
            "name": line(index.names[hit.image]),
            "label": line(index.labels[hit.image]),
            "cosine": round(hit.cosine, 6),
            "thumbnail": thumbnail(index.path(hit.image)),
        }
        for hit in searcher.images(vector, count)
    ]


def _levels(maps: np.ndarray) -> str:
    """Return maps [n, ...] as base64-encoded bytes, each scaled to 0 .. 255."""
    flat = maps.reshape(len(maps), -1).astype(np.float32)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    levels = np.round(255 * (flat - low) / np.maximum(high - low, 1e-12)).clip(0, 255)
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def _as_url(image: np.ndarray) -> str:
    """Return pixels as a PNG data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
