"""Train a small ViT from scratch on your own photographs: a folder with a sub-folder for each class.

    vit train --config=configs/scratch.py:data=folder:PATH --workdir=DIR

    data     folder:PATH or tfds:NAME
    size     pixels, by default 64, or 96 from 50,000 images on; patches of an eighth of the size give 64 tokens

Length, batch size, image size, augmentation and regularisation depend on the number of training images unless they are
given: the fewer images, the more epochs, the stronger the regularisation, and the fewer steps. Without train and test
folders, a tenth of each class is held out. The rows are our choice; there is no published number for this setting. With
few images a pretrained model (configs/finetune.py) is far better.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, common

# For `augment`: crops from a third of the image on, or from a twelfth; colour changes; and RandAugment for many images.
CROP = {"few": "random_resized_crop(SIZE, 0.35)|flip", "many": "inception_crop(SIZE)|flip"}
COLOURS = {"few": "|maybe(0.8, 'color_jitter(0.3, 0.3, 0.3, 0.05)')", "many": "|rand_augment(7)"}


def _row(
    below: int | None, batch_size: int, steps: int, size: int, augment: str, drop_path: float, mix: dict | None = None
) -> dict:
    preprocess = CROP[augment] + COLOURS[augment]
    return {
        "below": below, "batch_size": batch_size, "steps": steps, "image_size": size, "data": {"preprocess": preprocess},
        "model": {"drop_path": drop_path, "patch_size": size // 8}, "task": {"mix": mix}, "ema_decay": 1 - 20 / steps,
        "evals": {"test": {"every": steps // 4}},
    }  # fmt: skip


MIX = {"type": "MixupOrCutMix", "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "cutmix_prob": 0.5}
BY_SIZE = [
    _row(150, 32, 80, 64, "few", 0.1),
    _row(500, 32, 400, 64, "few", 0.1),
    _row(5_000, 64, 2_000, 64, "few", 0.1),
    _row(50_000, 128, 8_000, 64, "many", 0.1, MIX),
    _row(None, 256, 40_000, 96, "many", 0.05, MIX),
]


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=folder:PATH[,size=64]"."""
    given = arguments.parse(arg, data="", size=0)
    kind, _, place = given["data"].partition(":")
    if kind not in ("folder", "tfds") or not place or given["size"] < 0:
        raise ValueError(f"found {arg!r}, expected data=folder:PATH or data=tfds:NAME, and size=PIXELS")
    source = {"type": "folder.Folder", "path": place} if kind == "folder" else {"type": "tfds.Tfds", "name": place}

    config = common.get_config()
    config.batch_size = placeholder(int)
    config.image_size = given["size"] or placeholder(int)
    config.model = {
        "type": "vit.ViT", "width": 128, "depth": 6, "mlp_dim": 256, "num_heads": 4,
        "pool": "gap", "posemb": "sincos2d", "patch_size": max(1, given["size"] // 8) if given["size"] else placeholder(int),
        "drop_path": placeholder(float),
    }  # fmt: skip
    config.task.label_smoothing = 0.1
    config.task.mix = placeholder(dict)
    config.data.source = source | {"split": "train"}
    config.data.preprocess = placeholder(str)
    config.optim.rule = {"type": "muon", "momentum": 0.95, "b2": 0.99}
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.by_size = BY_SIZE
    config.evals.test = {
        "type": "classification.Classification",
        "source": source | {"split": "test"},
        "preprocess": "resize_small(SIZE*8//7)|central_crop(SIZE)",
        "batch_size": 100,
        "every": placeholder(int),
    }
    return config
