"""Scenes of emoji on photographs, with masks, boxes and a synthetic depth from their alpha channels."""

import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax.data.source import Encoded, Example
from vit_jax.data.sources.coco import Coco

SIZE = 126  # pixels: 9 x 9 patches of 14
VERSION = "16.0.0"
SETS = ("google", "twitter")  # Apache-2.0 and CC-BY 4.0
# Twelve subcategories of Unicode's emoji, which are the classes.
CLASSES = (
    "animal-mammal", "animal-bird", "animal-marine", "animal-bug", "food-fruit", "food-vegetable", "food-sweet", "plant-flower",
    "transport-ground", "transport-water", "clothing", "musical-instrument",
)  # fmt: skip
DEPTH = 100.0  # an emoji of s pixels is at the depth DEPTH / s; its pixels in the file are in thousandths
SIDES = (24, 64)  # of an emoji


def fetch(folder: Path) -> None:
    """Downloads the two packages of npm and unpacks what is needed of them; they are never committed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        if (folder / name).exists():
            continue
        package = f"emoji-datasource-{name}@{VERSION}"
        subprocess.run(["npm", "pack", package, "--pack-destination", str(folder)], check=True, capture_output=True)
        part = folder / f"{name}.part"
        with tarfile.open(folder / f"emoji-datasource-{name}-{VERSION}.tgz") as archive:
            wanted = [m for m in archive.getmembers() if m.name.endswith("/emoji.json") or f"/img/{name}/64/" in m.name]
            archive.extractall(part, members=wanted, filter="data")
        part.rename(folder / name)


def emoji(folder: Path) -> dict[str, list[list[Path]]]:
    """The files of each class, a list for each emoji with its picture in each set, in the order of Unicode."""
    found: dict[str, list[list[Path]]] = {name: [] for name in CLASSES}
    for row in json.loads((folder / SETS[0] / "package" / "emoji.json").read_text()):
        if row["subcategory"] in found and all(row[f"has_img_{name}"] for name in SETS):
            files = [folder / name / "package" / "img" / name / "64" / row["image"] for name in SETS]
            found[row["subcategory"]].append(files)
    return found


def write(photographs: Path, emoji_folder: Path, out: Path, counts: dict[str, int]) -> None:
    """Writes OUT/{images,masks,depth}/SPLIT/N.png and OUT/annotations/SPLIT.json; every third emoji and photograph is for tests."""
    photos, glyphs = sorted(photographs.glob("*.JPEG")), emoji(emoji_folder)
    for split, count in counts.items():
        if (out / "annotations" / f"{split}.json").exists():
            continue
        is_test = split == "test"
        ours = [path for i, path in enumerate(photos) if (i % 3 == 2) == is_test]
        pictures = [
            [path for i, files in enumerate(glyphs[name]) if (i % 3 == 2) == is_test for path in files]
            for name in CLASSES
        ]
        found = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(CLASSES)],
        }
        for kind in ("images", "masks", "depth", "annotations"):
            (out / kind / ("" if kind == "annotations" else split)).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rng = np.random.default_rng([int(is_test), number])
            image, labels, depth, boxes = scene(rng, ours, pictures)
            Image.fromarray(image).save(out / "images" / split / f"{number}.png")
            Image.fromarray(labels).save(out / "masks" / split / f"{number}.png")
            Image.fromarray(depth).save(out / "depth" / split / f"{number}.png")
            found["images"].append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
            for label, (left, top, right, bottom) in boxes:
                sides = (right - left, bottom - top)
                found["annotations"].append(
                    {"id": len(found["annotations"]) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                     "bbox": [left, top, *sides], "area": sides[0] * sides[1]}
                )  # fmt: skip
        (out / "annotations" / f"{split}.json").write_text(json.dumps(found))
    (out / "classes.txt").write_text("\n".join(("background", *CLASSES)))


def scene(rng: np.random.Generator, photos: list[Path], pictures: list[list[Path]]) -> tuple:
    """An image, the classes of its pixels (0 is the photograph), their depth in thousandths (0 is unknown), and its boxes."""
    with Image.open(photos[int(rng.integers(len(photos)))]) as file:
        photo = file.convert("RGB")
    side = int(rng.uniform(0.4, 1.0) * min(photo.size))
    left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
    image = np.array(photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side)))
    labels, depth, owner = (
        np.zeros((SIZE, SIZE), np.uint8),
        np.zeros((SIZE, SIZE), np.uint16),
        np.zeros((SIZE, SIZE), int),
    )
    pasted: list[int] = []
    for _ in range(int(rng.integers(1, 4))):
        label = int(rng.integers(len(pictures)))
        path = pictures[label][int(rng.integers(len(pictures[label])))]
        size = int(rng.integers(*SIDES))
        with Image.open(path) as file:
            glyph = np.array(file.convert("RGBA").resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32)
        top, left = (int(x) for x in rng.integers(0, SIZE - size + 1, 2))
        window = slice(top, top + size), slice(left, left + size)
        alpha = glyph[..., 3:] / 255
        image[window] = (alpha * glyph[..., :3] + (1 - alpha) * image[window]).round().astype(np.uint8)
        inside = alpha[..., 0] > 0.5
        pasted.append(label)
        for array, value in ((labels, label + 1), (depth, round(1000 * DEPTH / size)), (owner, len(pasted))):
            array[window][inside] = value
    boxes = []
    for number, label in enumerate(pasted, 1):
        rows, columns = np.nonzero(owner == number)
        if len(rows) > 20:  # of those that later ones nearly cover there is no box
            boxes.append((label, [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]))
    return image, labels, depth, boxes


class Map(Encoded):
    """A feature map as an image of many channels."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    def decode(self) -> np.ndarray:
        """See Encoded."""
        return self._pixels


class FrozenScenes(Coco):
    """Scenes whose images are the feature maps of a frozen backbone.

    maps: a file of numpy with uint8 [n, h, w, c], in the order of the names of the image files.
    """

    def __init__(self, path: str, split: str, annotations: str, maps: str):
        super().__init__(path, split, annotations, "images/{split}")
        self._maps = np.load(maps.replace("{split}", split), mmap_mode="r", allow_pickle=False)
        self._rows = {name: row for row, name in enumerate(sorted(map(self.name, range(len(self)))))}

    def __getitem__(self, index: int) -> Example:
        example, pixels = super().__getitem__(index), np.array(self._maps[self._rows[self.name(index)]])
        return example | {"image": Map(pixels), "boxes": example["boxes"] * np.float32(len(pixels) / SIZE)}
