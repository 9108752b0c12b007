"""Turn the bytes of a photograph into a JSON answer."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.decode import PILLOW_FORMATS, decode
from vit_jax.data.source import UnreadableImage
from vit_jax.explain.pictures import boxes_shown, class_shares
from vit_jax.inference import Loaded, Outputs
from vit_jax.printable import line
from vit_jax.search.index import unit
from vit_jax.search.nearest import Searcher
from vit_jax.search.sheet import thumbnail
from vit_jax.viz.dense import draw_boxes, overlay, palette, shaded

LEAST_SCORE = 0.5


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
    loaded: Loaded, outputs: Outputs, image: np.ndarray, attention: bool, grid: tuple[int, int] | None, top: int,
    searcher: Searcher | None, neighbours: int,
) -> dict[str, Any]:  # fmt: skip
    """Return an answer as JSON: what is predicted, the preprocessed image, its attention, and similar pictures."""
    answer: dict[str, Any] = {}
    if attention:
        answer["image"] = _as_url(image)
    answer |= dense(loaded, outputs, image)
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


def dense(loaded: Loaded, outputs: Outputs, image: np.ndarray) -> dict[str, Any]:
    """Return the predictions for pixels or boxes of a preprocessed image, with a picture of them over it.

    Boxes are (left, top, right, bottom) as fractions of the image; those with a score below LEAST_SCORE are left out.
    """
    if "segments" in outputs:
        classes = outputs["segments"]
        found = [
            {"label": line(loaded.class_names[i]), "share": share, "colour": _colour(i)}
            for i, share in class_shares(classes)
        ]
        return {"segments": found, "overlay": _as_url(overlay(image, classes))}
    if "numbers" in outputs:
        numbers = outputs["numbers"].astype(np.float64)
        span = {"least": float(numbers.min()), "most": float(numbers.max())}
        return {"numbers": span, "overlay": _as_url(shaded(numbers))}
    if "boxes" not in outputs:
        return {}
    scores, labels = outputs["box_scores"], outputs["box_labels"]
    order = boxes_shown(scores, LEAST_SCORE)
    pixels = outputs["boxes"][order].reshape(-1, 4) * np.array([image.shape[1], image.shape[0]] * 2)
    captions = [line(loaded.class_names[labels[i]]) for i in order]
    drawn = draw_boxes(image, pixels, [int(labels[i]) for i in order], captions)
    found = [
        {"label": caption, "score": round(float(scores[i]), 6), "box": outputs["boxes"][i].round(5).tolist(),
         "colour": _colour(1 + int(labels[i]) % 255)}
        for i, caption in zip(order, captions, strict=True)
    ]  # fmt: skip
    return {"boxes": found, "overlay": _as_url(np.asarray(drawn))}


def _colour(index: int) -> str:
    """Return a colour of the palette as in CSS."""
    return "#" + bytes(palette()[index]).hex()


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
