"""Train short DINOv2 on ImageNet-1k (arXiv:2304.07193; facebookresearch/dinov2, train/vitl16_short.yaml, defaults).

    python -m vit_jax.main --config=configs/dinov2_i1k.py --workdir=DIR
    python -m vit_jax.main --config=configs/dinov2_i1k.py:registers=4 --workdir=DIR

    registers   0 or more (arXiv:2309.16588). source: see configs/imagenet.py

Published for L/16 in about a day on 32 A100, on ImageNet-1k's validation images: kNN 81.6, linear 82.9 %.

Training takes 125,000 steps of 2,048 images; the original code counts 1,250 steps as an epoch. As there, but unlike
DINO, the first large view is never blurred, the second in 90 % of cases and small crops in half. Positions are fixed;
the original's are learned and interpolated. The norm of the whole gradient is clipped, not backbone and heads
separately. None of this was run here.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, deit, imagenet, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "registers=0[,source=...]"."""
    given = arguments.parse(arg, registers=0, source=imagenet.ARGUMENTS["source"])
    crop = f"random_resized_crop(SIZE, 0.32, 1.0, method='bicubic')|{stages.COLOURS}"
    local = f"random_resized_crop(96, 0.05, 0.32, method='bicubic')|{stages.COLOURS}|maybe(0.5, 'gaussian_blur()')"
    spec = stages.views(crop, f"{crop}|maybe(0.9, 'gaussian_blur()')|maybe(0.2, 'solarize()')", 8, local)
    config = stages.pretrain(given, spec, 100, 2048, 4e-3 * 2**0.5, warmup=10, end=1e-6)
    config.epochs, config.steps = placeholder(float), 125_000
    config.model = {
        "type": "vit.ViT", "variant": "L/16", "posemb": "sincos2d", "mlp": "gelu", "weight_init": "trunc_normal",
        "layer_scale": 1e-5, "drop_path": 0.3, "drop_path_rule": "constant", "mask_token": True, "registers": given["registers"],
    }  # fmt: skip
    config.task = {
        "type": "dinov2.DinoV2", "outputs": 65_536, "patch_outputs": None, "hidden": 2048, "bottleneck": 256,
        "momentum": 0.992, "teacher_temperature": (0.04, 0.07), "warmup": 0.3, "freeze_last": 0.01, "assignment": "centering",
        "koleo_weight": 0.1, "mask_prob": 0.5, "mask_ratio": (0.1, 0.5), "smallest_block": 4,
        "mean": deit.MEAN, "std": deit.STD,
    }  # fmt: skip
    config.optim.weight_decay, config.optim.weight_decay_end = 0.04, 0.4
    config.optim.decay = stages.DECAY
    config.optim.layer_decay = 0.9
    config.optim.multipliers = [("backbone/embed/", {"lr": 0.2})]
    config.optim.clip_norm = 3.0
    return config
