"""Load images with boxes in COCO's format: one JSON file that lists images, annotations and categories."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vit_jax import stores
from vit_jax.data import files
from vit_jax.data.images import ImageFile
from vit_jax.data.same_names import named
from vit_jax.data.source import Boxes, BoxLabels, Example, Fields, Image, Source
from vit_jax.printable import line
from vit_jax.types import Count, UserError

NO_BOXES = "boxes that are not four numbers"
OUTSIDE = 1.0  # pixels by which a box may exceed its image, due to rounding


class Annotations(NamedTuple):
    """The boxes of one image, (left, top, width, height) [n, 4] in float64, and their other annotations."""

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray


class Sized(ImageFile):
    """An image file of the size stated in its annotations."""

    def __init__(self, path: str, size: tuple[int, int], channels: int):
        super().__init__(functools.partial(files.read_file, path), channels)
        self._path, self._size = path, size

    def decode(self) -> UInt8[np.ndarray, "h w c"]:
        """See Encoded; raises UserError if the image has another size, as its boxes would then be misplaced."""
        image = super().decode()
        if image.shape[:2] != self._size:
            raise UserError(
                f"Found {line(self._path)} of {image.shape[0]} x {image.shape[1]} pixels, expected {self._size[0]} x "
                f"{self._size[1]} as its annotations say: correct one of them."
            )
        return image


class Coco(Source):
    """The images listed in a COCO-format JSON file, with their boxes and classes.

    annotations and images are a file and a folder below `path`; {split} is replaced by the split. Classes are the
    categories in order of their ids. Crowd boxes are not learned, as in DETR, but evaluators know them. bad_boxes: how
    to handle boxes that are empty or more than a pixel outside their image; "drop" clips them to the image, and drops
    empty ones.
    """

    def __init__(
        self,
        path: str,
        split: str = "train2017",
        annotations: str = "annotations/instances_{split}.json",
        images: str = "{split}",
        bad_boxes: Literal["refuse", "drop"] = "refuse",
        channels: Count = 3,
    ):
        root = os.path.expanduser(path)
        file, folder = (stores.join(root, text.replace("{split}", split)) for text in (annotations, images))
        listed = read_annotations(file)
        self._channels = channels
        self.category_ids, class_names = _categories(file, listed["categories"])
        self.image_ids = [image["id"] for image in listed["images"]]
        self.sizes = [(image["height"], image["width"]) for image in listed["images"]]
        names = [image["file_name"] for image in listed["images"]]
        self.annotations = _annotations(file, listed, self.category_ids, self.sizes, bad_boxes)
        there = set(files.find_images(folder, files.LeftOut()))
        missing = [name for name in names if os.path.normpath(name) not in there]
        if missing:
            raise UserError(
                f"Found in {file} {named('images that are not in ' + folder, missing)}; correct `images` or the file."
            )
        self._paths = [stores.join(folder, name) for name in names]
        self.fields = self.fields_of(class_names)

    @classmethod
    def fields_of(cls, class_names: tuple[str, ...]) -> Fields:
        """See Source."""
        return {"image": Image(), "boxes": Boxes(), "box_labels": BoxLabels(class_names)}

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def __getitem__(self, index: int) -> Example:
        found = self.annotations[index]
        one, (height, width) = ~found.crowd, self.sizes[index]
        boxes = found.boxes[one]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).clip(0, [width, height] * 2)
        image = Sized(self._paths[index], (height, width), self._channels)
        return {"image": image, "boxes": corners.astype(np.float32), "box_labels": found.labels[one]}


def read_annotations(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the three lists of a file; raises UserError if it is not in COCO's format."""
    try:
        found = json.loads(stores.read(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Found no readable JSON at {path!r} ({getattr(error, 'strerror', None) or error}).") from None
    kinds: dict[str, dict[str, Any]] = {
        "images": {"id": int | str, "file_name": str, "height": int, "width": int},
        "annotations": {"image_id": int | str, "category_id": int, "bbox": list},
        "categories": {"id": int, "name": str},
    }
    for key, fields in kinds.items():
        rows = found.get(key) if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise UserError(
                f"Found no list {key!r} in {path}, expected COCO's format: images, annotations and categories."
            )
        for index, row in enumerate(rows):
            wrong = [f for f, kind in fields.items() if not isinstance(row, dict) or not isinstance(row.get(f), kind)]
            if wrong:
                raise UserError(
                    f"Found {key}[{index}] of {path} without a proper {wrong[0]!r}; expected {', '.join(fields)}."
                )
    if not found["images"] or not found["categories"]:
        raise UserError(f"Found {len(found['images'])} images and {len(found['categories'])} categories in {path}.")
    return found


def _categories(path: str, listed: Sequence[Mapping[str, Any]]) -> tuple[list[int], tuple[str, ...]]:
    ordered = sorted(listed, key=lambda category: category["id"])
    ids, names = [category["id"] for category in ordered], tuple(category["name"] for category in ordered)
    if len(set(ids)) < len(ids) or len(set(names)) < len(names):
        raise UserError(f"Found categories with the same id or name in {path}; expected each once.")
    return ids, names


def _annotations(
    path: str,
    listed: Mapping[str, list[dict[str, Any]]],
    category_ids: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    bad_boxes: str,
) -> list[Annotations]:
    """Return the annotations of each image; raises UserError that counts and names the invalid ones."""
    places = {image["id"]: index for index, image in enumerate(listed["images"])}
    labels = {number: index for index, number in enumerate(category_ids)}
    rows: list[list[tuple[list[float], int, float, bool, Any]]] = [[] for _ in sizes]
    wrong: dict[str, list[str]] = {}
    if len(places) < len(sizes):
        wrong["images with the id of another"] = [""] * (len(sizes) - len(places))
    for number, row in enumerate(listed["annotations"]):
        name, crowd = f"annotation {row.get('id', number)}", bool(row.get("iscrowd", 0))
        index, label = places.get(row["image_id"]), labels.get(row["category_id"])
        if index is None or label is None:
            what = "annotations of an unknown image" if index is None else "annotations of an unknown category"
            wrong.setdefault(what, []).append(name)
            continue
        box, problem = _checked(row["bbox"], sizes[index])
        if problem and (bad_boxes == "refuse" or problem == NO_BOXES):
            wrong.setdefault(problem, []).append(f"{name} {row['bbox']} of {listed['images'][index]['file_name']}")
        if box is None or problem in wrong:
            continue
        area = float(row.get("area", box[2] * box[3]))
        rows[index].append((box, label, area, crowd, row.get("id", number + 1)))
    if wrong:
        raise UserError(
            f"Found in {path}: {'; '.join(named(what, some) for what, some in wrong.items())}. Repair the file"
            + (
                "; bad_boxes='drop' of the source cuts boxes at the border and drops empty ones."
                if bad_boxes == "refuse"
                else "."
            )
        )
    return [
        Annotations(
            np.array([row[0] for row in some], np.float64).reshape(-1, 4),
            np.array([row[1] for row in some], np.int32),
            np.array([row[2] for row in some], np.float64),
            np.array([row[3] for row in some], bool),
            np.array([row[4] for row in some]),
        )
        for some in rows
    ]


def _checked(box: Sequence[Any], size: tuple[int, int]) -> tuple[list[float] | None, str]:
    """Return (left, top, width, height), clipped if far outside and None if empty, and the problem, "" if none."""
    if len(box) != 4 or not all(isinstance(x, int | float) and np.isfinite(x) for x in box):
        return None, NO_BOXES
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    if box[2] <= 0 or box[3] <= 0:
        return None, "empty boxes"
    if min(left, top) >= -OUTSIDE and right <= size[1] + OUTSIDE and bottom <= size[0] + OUTSIDE:
        return [float(x) for x in box], ""
    left, right = (min(max(x, 0.0), size[1]) for x in (left, right))
    top, bottom = (min(max(x, 0.0), size[0]) for x in (top, bottom))
    inside = right > left and bottom > top
    cut = [float(x) for x in (left, top, right - left, bottom - top)]
    return cut if inside else None, "boxes outside their image"
