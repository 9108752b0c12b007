"""Write predictions for pixels and boxes to files: masks, overlays, number maps, and images with boxes."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image

from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.coco import read_annotations
from vit_jax.data.transforms.preprocess import split_spec
from vit_jax.evals.coco_map import as_results
from vit_jax.inference import Loaded
from vit_jax.tasks.dense import Dense
from vit_jax.tasks.detect import Detect
from vit_jax.types import UserError
from vit_jax.viz.dense import draw_boxes, overlay, save_mask, shaded

# Transforms after which predictions can be resized back to the original image.
WHOLE = ("resize", "resize_small", "resize_inside", "pad", "own_size", "pad_boxes", "drop")
CANVAS = 64  # canvas sizes are multiples of this, so that few are compiled


def predicts(loaded: Loaded) -> Literal["images", "pixels", "boxes"]:
    """Return whether a model predicts for images, pixels or boxes."""
    return "pixels" if isinstance(loaded.task, Dense) else "boxes" if isinstance(loaded.task, Detect) else "images"


def keeps_the_whole_image(preprocess: str) -> bool:
    """Return whether a preprocess spec keeps the whole image."""
    return all(text.partition("(")[0].strip() in WHOLE for text in split_spec(preprocess))


def read(
    loaded: Loaded, paths: Sequence[str]
) -> tuple[list[str], list[np.ndarray], list[dict[str, Any]], dict[str, str]]:
    """Return the readable paths, their images, the preprocessed images, and why the unreadable ones failed."""
    names: list[str] = []
    images: list[np.ndarray] = []
    examples: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        try:
            image = loaded.decoded(path)
            example = loaded.example(image)
        except UnreadableImage as error:
            unreadable[path] = str(error)
            continue
        if not keeps_the_whole_image(loaded.preprocess_spec):  # predictions are for the part that the model sees
            image = example["image"]
        names.append(path)
        images.append(image)
        examples.append({key: example[key] for key in ("image", "image_size") if key in example})
    return names, images, examples, unreadable


def stacked(examples: Sequence[Mapping[str, Any]], rows: int) -> dict[str, np.ndarray]:
    """Return examples as a batch of `rows`, padded with the last example."""
    filled = [*examples, *[examples[-1]] * (rows - len(examples))]
    return {key: np.stack([example[key] for example in filled]) for key in examples[0]}


def unique_names(paths: Sequence[str]) -> list[str]:
    """Return file names without folder and ending, numbered if several are equal."""
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    names: list[str] = []
    taken = set(stems)
    for number, stem in enumerate(stems):
        name = stem
        if stem in stems[:number]:
            name = next(name for i in itertools.count(2) if (name := f"{stem}-{i}") not in taken)
            taken.add(name)
        names.append(name)
    return names


def predicted(
    loaded: Loaded, paths: Sequence[str], rows: int, needs: Sequence[str]
) -> Iterator[tuple[str, str, np.ndarray | None, dict[str, Any]]]:
    """Yield path, unique name, image and outputs of each file, predicting `rows` files at once.

    Pixel outputs have the image's original size. An unreadable file has image None and {"unreadable": the reason}.
    """
    names = dict(zip(paths, unique_names(paths), strict=True))
    for start in range(0, len(paths), rows):
        readable, images, examples, unreadable = read(loaded, paths[start : start + rows])
        for path, reason in unreadable.items():
            yield path, names[path], None, {"unreadable": reason}
        if not readable:
            continue
        batch = stacked(examples, rows)
        sizes = np.array([image.shape[:2] for image in images], np.int32)
        if isinstance(loaded.task, Dense):
            canvas = [int(-(-side // CANVAS) * CANVAS) for side in sizes.max(axis=0)]
            batch["own_size"] = np.concatenate([sizes, np.tile(sizes[-1:], (rows - len(images), 1))])
            batch[loaded.task.key] = np.zeros((rows, *canvas), np.uint8)  # only its size is read
        outputs = jax.device_get(loaded.predictor(loaded.weights, batch, needs)[1])
        for row, (path, image) in enumerate(zip(readable, images, strict=True)):
            found = {key: x[row] for key, x in outputs.items()}
            if isinstance(loaded.task, Dense):
                found = {key: x[: sizes[row, 0], : sizes[row, 1]] for key, x in found.items()}
            yield path, names[path], image, found


def class_shares(classes: np.ndarray) -> list[tuple[int, float]]:
    """Return the classes of pixels that are present with their fractions, the largest first."""
    shares = np.bincount(classes.ravel()) / classes.size
    return [(int(i), round(float(shares[i]), 6)) for i in np.argsort(-shares, kind="stable") if shares[i]]


def boxes_shown(scores: np.ndarray, least_score: float) -> list[int]:
    """Return the positions of the boxes with at least this score, the highest first."""
    return [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= least_score]


def write_segments(
    image: np.ndarray, classes: np.ndarray, names: Sequence[str], name: str, out: Path
) -> dict[str, Any]:
    """Write masks/NAME.png and overlays/NAME.png; return the paths, and the fraction of each class present."""
    paths = {kind: out / f"{kind}s" / f"{name}.png" for kind in ("mask", "overlay")}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    save_mask(classes, paths["mask"])
    Image.fromarray(overlay(image, classes)).save(paths["overlay"])
    found = {names[i]: share for i, share in class_shares(classes)}
    return {"classes": found, **{kind: str(path) for kind, path in paths.items()}}


def write_numbers(numbers: np.ndarray, name: str, out: Path) -> dict[str, Any]:
    """Write numbers/NAME.npy and pictures/NAME.png; return the paths, and the smallest and largest number."""
    paths = {"numbers": out / "numbers" / f"{name}.npy", "picture": out / "pictures" / f"{name}.png"}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    np.save(paths["numbers"], numbers.astype(np.float32), allow_pickle=False)
    Image.fromarray(shaded(numbers.astype(np.float64))).save(paths["picture"])
    span = {"least": float(numbers.min()), "most": float(numbers.max())}
    return span | {kind: str(path) for kind, path in paths.items()}


def write_boxes(
    loaded: Loaded, paths: Sequence[str], rows: int, out: Path, annotations: str | None, least_score: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write pictures/NAME.png with the boxes of at least this score, and all boxes as COCO results into boxes.json.

    annotations: a COCO-format file with the ids of images, by file name, and of categories; without it, image ids are
    file names without ending, numbered if equal, as integers if they are numeric, and category ids the positions of
    classes, from 1. Yields each path with the results, or why it is unreadable.
    """
    image_ids, category_ids = ids_of(annotations, paths, loaded.class_names)
    results: list[dict[str, Any]] = []
    (out / "pictures").mkdir(exist_ok=True)
    for path, name, image, found in predicted(loaded, paths, rows, ("boxes", "box_scores", "box_labels")):
        if image is None:
            yield path, found
            continue
        boxes, scores, labels = (found[key] for key in ("boxes", "box_scores", "box_labels"))
        size = (image.shape[0], image.shape[1])
        results += as_results(boxes, scores, labels, size, image_ids[path], category_ids)
        order = boxes_shown(scores, least_score)
        captions = [f"{loaded.class_names[labels[i]]} {scores[i]:.0%}" for i in order]
        pixels = boxes[order].reshape(-1, 4) * np.array([size[1], size[0]] * 2)
        picture = out / "pictures" / f"{name}.png"
        draw_boxes(image, pixels, [int(labels[i]) for i in order], captions).save(picture)
        shown = [
            {"label": loaded.class_names[labels[i]], "score": float(scores[i]), "box": box}
            for i, box in zip(order, pixels.round(2).tolist(), strict=True)
        ]
        yield path, {"boxes": shown, "picture": str(picture)}
    (out / "boxes.json").write_text(json.dumps(results))


def ids_of(
    annotations: str | None, paths: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, Any], list[int | None]]:
    """Return the id of each image by path, and of each class; raises UserError if an image or all classes lack one."""
    if annotations is None:
        own = dict(zip(paths, unique_names(paths), strict=True))
        return {path: int(x) if x.isdecimal() else x for path, x in own.items()}, [*range(1, len(names) + 1)]
    listed = read_annotations(annotations)
    known = {os.path.basename(image["file_name"]): image["id"] for image in listed["images"]}
    categories = {category["name"]: category["id"] for category in listed["categories"]}
    missing = [path for path in paths if os.path.basename(path) not in known]
    if missing:
        raise UserError(
            f"Found {len(missing)} images that {annotations} does not list, for example {missing[0]}; leave them out."
        )
    if len({os.path.basename(path) for path in paths}) < len(paths):
        raise UserError(
            f"{annotations} lists images by their names without folders, and several of yours have one name; predict one folder."
        )
    if not set(names) & set(categories):
        raise UserError(
            f"Found none of the model's classes ({', '.join(names[:5])}) among the categories of {annotations}."
        )
    return {path: known[os.path.basename(path)] for path in paths}, [categories.get(name) for name in names]


def write_pixels(loaded: Loaded, paths: Sequence[str], rows: int, out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write the pixel predictions of images; yields each path with the results, or why it is unreadable."""
    need = "segments" if loaded.class_names else "numbers"
    for path, name, image, found in predicted(loaded, paths, rows, (need,)):
        if image is None:
            yield path, found
        elif need == "segments":
            yield path, write_segments(image, found[need], loaded.class_names, name, out)
        else:
            yield path, write_numbers(found[need], name, out)
