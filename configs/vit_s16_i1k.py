"""Train a better plain ViT-S/16 on ImageNet-1k (arXiv:2205.01580, listing 1; big_vision, configs/vit_s16_i1k.py).

    python -m vit_jax.main --config=configs/vit_s16_i1k.py --workdir=DIR
    python -m vit_jax.main --config=configs/vit_s16_i1k.py:epochs=300 --workdir=DIR

    epochs   90, 150 or 300, or any other number; source and evals: see configs/imagenet.py

Published for 90, 150 and 300 epochs on one TPUv3-8 (tables 1 and 2), at 224 px: validation 76.5, 78.5, 80.0 %; ReaL
83.1, 84.5, 85.4 %; ImageNet-v2 64.2, 66.4, 68.3 %. 90 epochs take 6.5 hours, 300 less than a day. The only difference
from the listing is that the host's image operations are Pillow's instead of TensorFlow's: crops are resized with
antialiasing, which big_vision lacks, and evaluation images with an antialiased bilinear filter instead of big_vision's
area averaging. None of this was run here.
"""

import ml_collections

from configs import arguments, common, imagenet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "epochs=90[,source=...][,evals=val]"."""
    given = arguments.parse(arg, epochs=90, **imagenet.ARGUMENTS)
    config = common.get_config()
    imagenet.fill(config, given, "inception_crop(SIZE)|flip|randaug(2, 10)")
    config.epochs = given["epochs"]
    config.batch_size = 1024
    config.model = {"type": "vit.ViT", "variant": "S/16", "pool": "gap", "posemb": "sincos2d", "rep_size": 384}
    config.task.mix = {"type": "Mixup", "alpha": 0.2}
    config.optim.rule.mu_dtype = "bfloat16"
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.schedule.warmup_steps = 10_000
    return config
