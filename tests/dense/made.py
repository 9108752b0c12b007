"""Small folders of images whose pixels are labelled by their colours."""

from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image

from configs import common

CLASSES = ("ground", "red", "green")
COLOURS = np.array([[40, 40, 40], [200, 30, 30], [30, 190, 40]], np.uint8)


def scene(seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Classes of pixels: one or two boxes on the ground."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint8)
    for kind in rng.permutation(2)[: rng.integers(1, 3)] + 1:
        top, left = rng.integers(0, size[0] - 10), rng.integers(0, size[1] - 10)
        labels[top : top + rng.integers(6, 11), left : left + rng.integers(6, 11)] = kind
    return labels


def image_of(labels: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng([seed, 1]).integers(-20, 21, (*labels.shape, 3))
    return (COLOURS[labels].astype(int) + noise).clip(0, 255).astype(np.uint8)


def write_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (24, 32)) -> Path:
    """images/SPLIT/N.png and masks/SPLIT/N.png, palette PNG files."""
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            seed = i if split == "train" else 1000 + i
            labels = scene(seed, size)
            Image.fromarray(image_of(labels, seed)).save(root / "images" / split / f"{i}.png")
            mask = Image.fromarray(labels, "P")
            mask.putpalette(COLOURS.tobytes())
            mask.save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def config_of(root: Path, **task) -> ml_collections.ConfigDict:
    """A run on such a folder that takes seconds."""
    config = common.get_config()
    config.steps, config.batch_size = 40, 8
    config.model = {
        "type": "vit.ViT",
        "width": 32,
        "depth": 1,
        "mlp_dim": 32,
        "num_heads": 2,
        "patch_size": 4,
        "pool": "gap",
    }
    config.task = {"type": "segment.Segment", "mean": 0.5, "std": 0.5, "head": {"type": "Linear"}} | task
    config.data.source = {"type": "segments.SegmentFolder", "path": str(root)}
    config.data.preprocess = "random_resized_crop((24, 32), 0.5)|flip"
    config.data.threads = 1
    config.optim.lr = 0.01
    config.optim.schedule.warmup_steps = 4
    config.log.every, config.checkpoint.every = 20, 40
    config.evals.test = {
        "type": "miou.MeanIou",
        "source": {"type": "segments.SegmentFolder", "path": str(root), "split": "val"},
        "preprocess": "own_size((24, 32))|resize((24, 32))",
        "batch_size": 4,
    }
    return config
