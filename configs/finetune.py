"""Fine-tune any pretrained model on any images, with the recipes of two papers.

    python -m vit_jax.main --config=configs/finetune.py:model=MODEL,data=DATA --workdir=DIR

    data     cifar10, cifar100, pets, flowers or imagenet (TFDS), tfds:NAME, or folder:PATH
    size     pixels; 384 as in both papers, or "own": the model's own image size
    recipe   vit: arXiv:2010.11929, table 4; augreg: arXiv:2106.10270, section 3.4
    tune     all; head: only the head, a linear probe; attn: attention layers, positions and head (arXiv:2203.09795)

SGD with momentum 0.9 in bfloat16, cosine decay, batch 512, gradients clipped at 1, no weight decay. Published for
AugReg B/32 from ImageNet-21k at 384 px (big_vision, configs/transfer.py): CIFAR-10 98.55, CIFAR-100 91.35, Pets 93.78,
Flowers 99.43, ImageNet 83.27 %; for ViT-B/16 from ImageNet-21k (arXiv:2010.11929, table 5): 98.95, 91.67, 94.43, 99.38,
83.97 %. None of them was run here. For a folder, batch size, steps and learning rate depend on its number of images;
these values are our choice.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, common

# TFDS name, training split, test split, steps and warm-up fraction, learning rates to try and the best for AugReg's
# B/32. The warm-up of the short runs follows the original's and big_vision's configs.
DATASETS = {
    "cifar10": ("cifar10", "train", "test", 10_000, 0.05, (0.001, 0.003, 0.01, 0.03), 0.003),
    "cifar100": ("cifar100", "train", "test", 10_000, 0.05, (0.001, 0.003, 0.01, 0.03), 0.01),
    "pets": ("oxford_iiit_pet", "train", "test", 500, 0.2, (0.001, 0.003, 0.01, 0.03), 0.003),
    "flowers": ("oxford_flowers102", "train+validation", "test", 500, 0.2, (0.001, 0.003, 0.01, 0.03), 0.003),
    "imagenet": ("imagenet2012", "train", "validation", 20_000, 0.025, (0.003, 0.01, 0.03, 0.06), 0.03),
}
FREEZE = {"all": None, "head": "^(?!head)", "attn": r"^(?!head|posemb/|encoder/block_\d+/attn/)"}


def _by_size(below: int | None, batch_size: int, steps: int, lr: float) -> dict:
    return {"below": below, "batch_size": batch_size, "steps": steps, "optim": {"lr": lr}}


BY_SIZE = [
    _by_size(500, 16, 250, 0.003),
    _by_size(2_000, 32, 500, 0.003),
    _by_size(20_000, 64, 1_500, 0.003),
    _by_size(500_000, 256, 5_000, 0.01),
    _by_size(None, 512, 20_000, 0.03),
]


def _parse(arg: str) -> dict:
    given = arguments.parse(arg, model="", data="", size="384", recipe=("vit", "augreg"), tune=tuple(FREEZE))
    kind, _, place = given["data"].partition(":")
    if not given["model"] or (kind not in DATASETS if not place else kind not in ("folder", "tfds")):
        raise ValueError(
            f"found {arg!r}, expected model=MODEL,data=DATA, where DATA is {', '.join(DATASETS)}, tfds:NAME or folder:PATH"
        )
    if given["size"] != "own" and not (given["size"].isdecimal() and int(given["size"])):
        raise ValueError(f"found size={given['size']}, expected a number of pixels, or own")
    return given


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "model=MODEL,data=DATA[,size=384][,recipe=vit][,tune=all]"."""
    given = _parse(arg)
    kind, _, place = given["data"].partition(":")
    config = common.get_config()
    config.model = {}
    del config.init  # a placeholder would prevent the keys below from being set
    config.init = {"ref": given["model"], "head": "auto", "posemb": "auto", "allow": placeholder(str)}
    config.image_size = placeholder(int) if given["size"] == "own" else int(given["size"])
    config.freeze = FREEZE[given["tune"]] or placeholder(str)
    config.optim.rule = {"type": "sgd", "momentum": 0.9, "momentum_dtype": "bfloat16"}
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.optim.lr = placeholder(float)
    config.batch_size = placeholder(int)
    if kind in DATASETS:
        name, train, test, config.steps, warmup, _, config.optim.lr = DATASETS[kind]
        config.optim.schedule = {"type": "cosine", "warmup_steps": warmup}
        config.batch_size = 512
        config.init.head = "reset"
    else:
        train, test, name = "train", "test", place
        config.by_size = BY_SIZE
    if kind == "folder":
        source, test = {"type": "folder.Folder", "path": place}, "test"
    else:
        source = {"type": "tfds.Tfds", "name": name}

    crop, resize = "inception_crop(SIZE)", "resize(SIZE)"
    if given["recipe"] == "augreg":  # 448 pixels for 384
        crop = "resize_small(SIZE*7//6)|pad_crop(SIZE, 0)" if kind.startswith("cifar") else crop
        resize = "resize_small(SIZE*7//6)|central_crop(SIZE)"
    config.data.source = source | {"split": train}
    config.data.preprocess = f"{crop}|flip"
    config.evals.test = {
        "type": "classification.Classification",
        "source": source | {"split": test},
        "preprocess": resize,
        "batch_size": 64,
        "every": placeholder(int),
    }
    return config
