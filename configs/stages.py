"""Share the stages of label-free recipes on ImageNet-1k: pretraining, fine-tuning, linear probing. Not a recipe itself.

Their key `init` is a pretrained run, or any model reference, whose backbone is fine-tuned or probed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import common, deit, imagenet

RESIZE = "resize_small(SIZE*8//7, 'bicubic')|central_crop(SIZE)"
# DINO's colour changes after a crop, also used by iBOT, DINOv2 and LeJEPA.
COLOURS = "flip|maybe(0.8, 'color_jitter(0.4, 0.4, 0.2, 0.1)')|grayscale(0.2)"
# Tokens and prototypes are decayed too: the originals decay all parameters with more than one dimension.
DECAY = "(kernel|cls|mask_token|prototypes)$"


def pretrain(
    given: dict, preprocess: str, epochs: int, batch_size: int, lr: float, warmup: int, **schedule: float
) -> ml_collections.ConfigDict:
    """Return a config without model and task. warmup: epochs. schedule: further learning rates of a cosine schedule.

    Features are evaluated by nearest neighbours among ImageNet-1k's training images.
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
    """Return a spec of two large views, the second with its own spec, and small crops."""
    return f"views(2, {crops}, view={first!r}, last_view={second!r}, crop={crop!r})"


def multi_crop(large: tuple[float, float], small: tuple[float, float], crops: int = 8, size: int = 96) -> str:
    """Return DINO's views of these area fractions: one blurred, one rarely but 1 in 5 solarized, half of the crops."""
    crop = f"random_resized_crop(SIZE, {large[0]}, {large[1]}, method='bicubic')|{COLOURS}"
    local = (
        f"random_resized_crop({size}, {small[0]}, {small[1]}, method='bicubic')|{COLOURS}|maybe(0.5, 'gaussian_blur()')"
    )
    return views(
        f"{crop}|gaussian_blur()", f"{crop}|maybe(0.1, 'gaussian_blur()')|maybe(0.2, 'solarize()')", crops, local
    )


def begin(given: dict, preprocess: str, model: dict) -> ml_collections.ConfigDict:
    """Return a classifier config that starts from a pretrained backbone, with some changed fields of the model."""
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
    """Fine-tune on the mean of all patches with DeiT's augmentation and batches of 1,024, as for BEiT, MAE and SimMIM.

    The mean is normalised by its own, re-initialized layer instead of the encoder's last one. std: of the head.
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
