"""Train a ViT with a convolutional stem (7 M parameters) on CIFAR-10 from scratch, for one GPU and some minutes.

    python -m vit_jax.main --config=configs/cifar10_fast.py:data=folder:PATH --workdir=DIR
    python experiments/speed_202611/cifar10.py --data=folder:PATH --out=DIR     # and how long it took to 90, 94 and 95 %

`data` is folder:PATH, with train and test folders, or tfds:NAME; `epochs` 200 by default. Images stay on the device, which
crops, flips and mixes them. Three small convolutions with overlap (arXiv:2106.14881) make 64 tokens of an image, as
many as patches of 4 pixels; everything else is as in cifar10.py, with mixup or cutmix, label smoothing, stochastic
depth and averaged weights as in DeiT (arXiv:2012.12877), for many epochs. It aims at 95 % and was not run to its end.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, cifar10


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=DATA[,epochs=200]"."""
    given = arguments.parse(arg, data="tfds:cifar10", epochs=200)
    config = cifar10.get_config(given["data"])
    config.steps, config.epochs, config.batch_size = placeholder(int), float(given["epochs"]), 1024
    config.model = {
        "type": "vit.ViT", "width": 384, "depth": 7, "mlp_dim": 768, "num_heads": 6, "patch_size": 1, "pool": "gap",
        "posemb": "sincos2d", "drop_path": 0.1, "dtype": "bfloat16",
        "stem": {"type": "conv_stem.ConvStem", "widths": (64, 128, 256), "strides": (1, 2, 2)},
    }  # fmt: skip
    config.data.resident = True
    config.data.threads = 8  # once, to decode the images
    config.task.label_smoothing = 0.1
    config.task.mix = {"type": "MixupOrCutMix", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "cutmix_prob": 0.5}
    config.ema_decay = 0.999
    config.evals.test.every = 250  # about 5 epochs
    config.checkpoint.every = 2500
    return config
