"""Train DeiT and its distilled form (arXiv:2012.12877, table 9; facebookresearch/deit, main.py).

    python -m vit_jax.main --config=configs/deit.py:variant=S/16 --workdir=DIR
    python -m vit_jax.main --config=configs/deit.py:variant=B/16,teacher=MODEL --workdir=DIR

    variant   Ti/16, S/16, B/16
    teacher   none, or any model reference: hard distillation through a distillation token
    epochs    300; the paper also distils for 1000. source and evals: see configs/imagenet.py

Published, on ImageNet-1k's validation images at 224 px (table 5), for Ti, S, B: 72.2, 79.8, 81.8 %; distilled from a
RegNetY-16GF of 82.9 % 74.5, 81.2, 83.4 %, after 1000 epochs 76.6, 82.6, 84.2 %; B distilled from DeiT-B 81.9 % (table
2). The repository's weights for S reach 79.9 %. B takes 53 hours on 8 GPUs, Ti and S less than 3 days on 4 (section 6).

A RegNet cannot be loaded here: the teacher is a ViT, Mixer or hybrid, while the paper prefers convnets (table 2).
Weights are initialized as in the repository, except the bias of the patch embedding, which is zero. The learning rate
changes with every step, timm's with every epoch. The three copies of an image are consecutive in one order of all
images; the repository shuffles every epoch and shows a third of the images: each is seen equally often on average. One
mixup or cutmix ratio is drawn for the whole batch; the repository draws one per process. The numbers are for the
weights themselves, without a running average. None of this was run here.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, common, imagenet

# For ImageNet's colours, normalised as for torchvision's models.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, BATCH_SIZE = 1e-3, 1024  # 5e-4 for 512 images
CROP = "random_resized_crop(SIZE, method='bicubic')|flip"
RAND_AUGMENT = "rand_augment(9, 0.5, method='bicubic')"
HEAD = {"type": "linear", "std": 0.02}
MIX = {"type": "MixupOrCutMix", "mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def schedule(lr: float, epochs: int) -> dict[str, str | float | bool]:
    """Return timm's cosine schedule used by DeiT and DeiT-III: five epochs from 1e-6, and down to 1e-5."""
    if epochs <= 5:
        raise ValueError(f"found epochs={epochs}, expected more than the 5 of the warm-up")
    return {
        "type": "cosine", "warmup_steps": 5 / epochs, "start": 1e-6 / lr, "end": min(1e-5 / lr, 1.0), "count_warmup": True,
    }  # fmt: skip


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=S/16[,teacher=MODEL][,epochs=300][,source=...][,evals=val]"."""
    given = arguments.parse(arg, variant=("S/16", "Ti/16", "B/16"), teacher="none", epochs=300, **imagenet.ARGUMENTS)
    config = common.get_config()
    resize = "resize_small(SIZE*8//7, 'bicubic')|central_crop(SIZE)"
    imagenet.fill(config, given, f"{CROP}|{RAND_AUGMENT}|random_erasing(0.25)", resize, whole=True)
    config.data.repeats = 3
    config.epochs = given["epochs"]
    config.batch_size = BATCH_SIZE
    config.model = {"type": "vit.ViT", "variant": given["variant"], "mlp": "gelu", "drop_path": 0.1}
    config.model.update({"weight_init": "trunc_normal", "head": HEAD})
    config.task = {
        "type": "classify.Classify", "loss_name": "softmax_xent", "label_smoothing": 0.1, "mix": MIX, "mean": MEAN, "std": STD,
    }  # fmt: skip
    if given["teacher"] != "none":
        config.teacher = given["teacher"]
        config.model.distilled = True
        config.task.update({"type": "distill.Distill", "kind": "hard", "weight": 0.5})
    config.optim.lr = LR
    config.optim.weight_decay = 0.05
    config.optim.schedule = schedule(LR, given["epochs"])
    config.optim.clip_norm = placeholder(float)
    return config
