"""What the recipes without labels share on ImageNet-1k: pretraining, fine-tuning and linear probing. Not a recipe itself.

Their key `init` is a pretrained run, or any reference of a model, whose backbone is fine-tuned or probed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import common, deit, imagenet

RESIZE = "resize_small(SIZE*8//7, 'bicubic')|central_crop(SIZE)"
# DINO's changes of colour after a crop; iBOT, DINOv2 and LeJEPA take the same.
COLOURS = "flip|maybe(0.8, 'color_jitter(0.4, 0.4, 0.2, 0.1)')|grayscale(0.2)"
# Tokens and prototypes are decayed too, as the originals decay whatever has more than one dimension.
DECAY = "(kernel|cls|mask_token|prototypes)$"


def pretrain(
    given: dict, preprocess: str, epochs: int, batch_size: int, lr: float, warmup: int, **schedule: float
) -> ml_collections.ConfigDict:
    """A config without model and task. warmup: epochs. schedule: further keys of a cosine schedule, as learning rates.

    Features are measured by nearest neighbours among ImageNet-1k's training images.
    """
    if epochs <= warmup:
        raise ValueError(f"found epochs={epochs}, expected more than the {warmup} of the warm-up")
    if given.get("evals") == "all":
        raise ValueError("found evals=all, expected val: without labels there is no class to measure on other images")
    config = common.get_config()
    imagenet.fill(config, given | {"evals": "val"}, preprocess, RESIZE, whole=True)
    measured = {"preprocess": RESIZE, "batch_size": 256, "threads": 32, "every": 25_000}
    test, train = config.evals.val.source.to_dict(), config.data.source.to_dict()
    config.evals = {
        "knn": {"type": "knn.Knn", "source": test, "train": train, **measured},
        "collapse": {"type": "collapse.Collapse", "source": test, **measured},
    }
    config.epochs, config.batch_size = epochs, batch_size
    config.optim.lr = lr
    config.optim.clip_norm = placeholder(float)
    rates = {key: rate / lr for key, rate in schedule.items()}
    config.optim.schedule = {"type": "cosine", "warmup_steps": warmup / epochs, **rates}
    return config


def views(first: str, second: str, crops: int, crop: str) -> str:
    """A spec of two large views, the second by a spec of its own, and small crops."""
    return f"views(2, {crops}, view={first!r}, last_view={second!r}, crop={crop!r})"


def multi_crop(large: tuple[float, float], small: tuple[float, float], crops: int = 8, size: int = 96) -> str:
    """DINO's views, of these shares of the area: one always blurred, one rarely, but solarized in a fifth, small ones in half."""
    crop = f"random_resized_crop(SIZE, {large[0]}, {large[1]}, method='bicubic')|{COLOURS}"
    local = (
        f"random_resized_crop({size}, {small[0]}, {small[1]}, method='bicubic')|{COLOURS}|maybe(0.5, 'gaussian_blur()')"
    )
    return views(
        f"{crop}|gaussian_blur()", f"{crop}|maybe(0.1, 'gaussian_blur()')|maybe(0.2, 'solarize()')", crops, local
    )


def begin(given: dict, preprocess: str, model: dict) -> ml_collections.ConfigDict:
    """A config of a classifier that begins from a pretrained backbone, with some fields of the model changed."""
    if not given["init"]:
        raise ValueError(f"found stage={given['stage']}, expected init=MODEL too, the pretrained run or model")
    config = common.get_config()
    imagenet.fill(config, given, preprocess, RESIZE, whole=True)
    config.model = model
    del config.init
    config.init = {"ref": given["init"], "head": "reset", "posemb": "auto", "allow": placeholder(str)}
    config.task.update({"mean": deit.MEAN, "std": deit.STD})
    config.optim.clip_norm = placeholder(float)
    return config


def finetune(
    given: dict,
    epochs: int,
    lr: float,
    layer_decay: float,
    drop_path: float,
    warmup: int,
    std: float = 2e-5,
    start: float = 0.0,
) -> ml_collections.ConfigDict:
    """DeiT's augmentation and batches of 1,024, on the mean of all patches, as BEiT, MAE and SimMIM are fine-tuned.

    The mean is normalised by a layer of its own, which begins anew, in place of the encoder's last one. std: of the head.
    """
    crop = f"{deit.CROP}|{deit.RAND_AUGMENT}|random_erasing(0.25)"
    pooled = {"pool": "gap", "class_token": True, "norm_after_pool": True, "mask_token": False, "drop_path": drop_path}
    config = begin(given, crop, pooled | {"head": {"type": "linear", "std": std}})
    config.init.allow = "^(norm|encoder/norm|mask_token)(/|$)"
    config.task.update({"label_smoothing": 0.1, "mix": deit.MIX})
    config.epochs, config.batch_size = epochs, 1024
    config.optim.lr, config.optim.weight_decay, config.optim.layer_decay = lr, 0.05, layer_decay
    config.optim.schedule = {"type": "cosine", "warmup_steps": warmup / epochs, "start": start / lr, "end": 1e-6 / lr}
    return config
