"""Train Swin on ImageNet-1k (arXiv:2103.14030, arXiv:2111.09883; microsoft/Swin-Transformer, config.py and configs).

    python -m vit_jax.main --config=configs/swin.py:variant=T --workdir=DIR
    python -m vit_jax.main --config=configs/swin.py:variant=B,version=2,window=16 --workdir=DIR
    python -m vit_jax.main --config=configs/swin.py:variant=B,init=MODEL --workdir=DIR        # to 384 px and windows of 12

    variant   T, S, B
    version   1 at 224 px, 2 at 256 px
    window    7 for version 1; 8 or 16 for version 2
    init      a Swin of version 1 trained at 224 px, to fine-tune for 30 epochs
    source and evals: see configs/imagenet.py

Published, on ImageNet-1k's validation images, for T, S, B: version 1 81.2, 83.2, 83.5 %, and B at 384 px 84.5 %; version 2 with
windows of 8 81.8, 83.7, 84.2 %, with windows of 16 82.8, 84.1, 84.6 % (the repository's README; the paper has 81.3, 83.0, 83.5 %).

Weights are initialized as in the repository, except the patch embedding, which PyTorch draws uniformly there. One mixup
or cutmix ratio is drawn for the whole batch. None of this was run here.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, common, deit, imagenet

DROP_PATH = {"T": 0.2, "S": 0.3, "B": 0.5}
WINDOWS = {1: (7,), 2: (8, 16)}
BATCH_SIZE = 1024


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=T[,version=1][,window=7][,init=MODEL][,source=...][,evals=val]"."""
    given = arguments.parse(arg, variant=tuple(DROP_PATH), version=("1", "2"), window=0, init="", **imagenet.ARGUMENTS)
    variant, version = given["variant"], int(given["version"])
    window = given["window"] or WINDOWS[version][0]
    if window not in WINDOWS[version]:
        raise ValueError(f"found window={window}, expected one of {WINDOWS[version]} for version={version}")
    if given["init"] and version != 1:
        raise ValueError(
            f"found version={version} with init=MODEL, expected version=1, which has settings to fine-tune"
        )

    config = common.get_config()
    crop = f"{deit.CROP}|{deit.RAND_AUGMENT}|random_erasing(0.25)"
    resize = "resize(SIZE, 'bicubic')" if given["init"] else "resize_small(SIZE*8//7, 'bicubic')|central_crop(SIZE)"
    imagenet.fill(config, given, crop, resize, whole=True)
    config.image_size = 384 if given["init"] else {1: 224, 2: 256}[version]
    config.batch_size = BATCH_SIZE
    config.task = {
        "type": "classify.Classify", "loss_name": "softmax_xent", "label_smoothing": 0.1, "mix": deit.MIX,
        "mean": deit.MEAN, "std": deit.STD,
    }  # fmt: skip
    config.optim.clip_norm = 5.0
    if given["init"]:
        config.model = {"window": 12, "drop_path": DROP_PATH[variant]}
        del config.init
        config.init = {"ref": given["init"], "head": "auto", "posemb": "auto", "allow": placeholder(str)}
        _learn(config, epochs=30, warmup=5, lr=2e-5, weight_decay=1e-8)
    else:
        config.model = {
            "type": "swin.Swin", "variant": variant, "version": version, "window": window, "drop_path": DROP_PATH[variant],
            "head": deit.HEAD,
        }  # fmt: skip
        _learn(config, epochs=300, warmup=20, lr=5e-4, weight_decay=0.05)
    return config


def _learn(config: ml_collections.ConfigDict, epochs: int, warmup: int, lr: float, weight_decay: float) -> None:
    """Set the original's rates: lr for 512 images, a thousandth of it before the warm-up, a hundredth at the end."""
    config.epochs = epochs
    config.optim.lr = lr * BATCH_SIZE / 512
    config.optim.weight_decay = weight_decay
    # Version 2 computes offsets with an MLP, which is not decayed.
    config.optim.decay = r"(?<!offset_up/)(?<!offset_down/)kernel$"
    config.optim.schedule = {"type": "cosine", "warmup_steps": warmup / epochs, "start": 1e-3, "end": 1e-2}
