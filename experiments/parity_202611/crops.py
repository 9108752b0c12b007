"""Statistics of the random crops of every recipe, beside those of TensorFlow and torchvision where they are installed.

    python experiments/parity_202611/crops.py

Prints a Markdown table: of boxes in an image of 375 x 500 pixels, the mean share of the area, the part of the boxes below a quarter
of it, the mean of width / height, and the mean centre as shares of width and height.
"""

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vit_jax.config import load as config_file  # noqa: E402
from vit_jax.data.transforms.preprocess import OPS, parse_steps  # noqa: E402

HEIGHT, WIDTH, DRAWS = 375, 500, 50_000
RECIPES = (
    *("vit", "augreg", "vit_s16_i1k", "mixer", "sam", "scaling_vit", "distill:teacher=MODEL"),
    *("finetune:model=MODEL,data=imagenet", "deit", "deit3", "mae:folder:PATH", "dino:folder:PATH"),
)


def described(boxes: np.ndarray) -> str:
    """Return the cells of a row for boxes [n, 4] of (left, top, right, bottom)."""
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top) / (HEIGHT * WIDTH)
    numbers = (area.mean(), (area < 0.25).mean(), ((right - left) / (bottom - top)).mean())
    centre = ((left + right).mean() / (2 * WIDTH), (top + bottom).mean() / (2 * HEIGHT))
    return " | ".join(f"{number:.3f}" for number in (*numbers, *centre))


def of_recipe(recipe: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each random crop of a recipe's preprocessing as it is written, and boxes drawn by it."""
    name, colon, argument = recipe.partition(":")
    spec = config_file.load(f"{ROOT / 'configs' / name}.py{colon}{argument}").data.preprocess
    for text in sorted(set(re.findall(r"(?:inception|random_resized)_crop\([^()]*\)", spec))):
        (op,), rng = (
            parse_steps(text.replace("SIZE", "224"), OPS, [text.replace("SIZE", "224")]),
            np.random.default_rng(0),
        )
        yield text, np.array([op.draw(HEIGHT, WIDTH, rng) for _ in range(DRAWS)], float)


def of_tensorflow(area: tuple[float, float]) -> np.ndarray:
    """Return boxes of tf.image.sample_distorted_bounding_box as big_vision calls it."""
    tf = importlib.import_module("tensorflow")
    tf.random.set_seed(0)

    def one(_):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.constant([HEIGHT, WIDTH, 3]), tf.zeros([0, 0, 4]), area_range=area, min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        return tf.stack([begin[1], begin[0], begin[1] + size[1], begin[0] + size[0]])

    return tf.function(lambda: tf.map_fn(one, tf.range(DRAWS), fn_output_signature=tf.int32))().numpy().astype(float)


def of_torchvision(area: tuple[float, float]) -> np.ndarray:
    """Return boxes of torchvision's RandomResizedCrop."""
    peers = importlib.import_module("tests.peers")  # a torch without CUDA needs what it does first
    peers.torch.manual_seed(0)
    image = peers.torch.empty(3, HEIGHT, WIDTH)
    drawn = (
        peers.torchvision.transforms.RandomResizedCrop.get_params(image, area, (3 / 4, 4 / 3)) for _ in range(DRAWS)
    )
    return np.array([(left, top, left + columns, top + rows) for top, left, rows, columns in drawn], float)


def main() -> None:
    """Print the table."""
    print(
        "| recipe | crop | mean area | below a quarter | width / height | centre, x | centre, y |\n"
        + "| --- " * 7
        + "|"
    )
    for area in ((0.05, 1.0), (0.08, 1.0)):
        for library, draw in (("TensorFlow", of_tensorflow), ("torchvision", of_torchvision)):
            with contextlib.suppress(ImportError):
                print(f"| {library} | area from {area[0]} | {described(draw(area))} |", flush=True)
    for recipe in RECIPES:
        for text, boxes in of_recipe(recipe):
            print(f"| `{recipe.partition(':')[0]}` | `{text}` | {described(boxes)} |", flush=True)


if __name__ == "__main__":
    main()
