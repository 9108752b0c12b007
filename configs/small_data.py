"""Train on CIFAR-10, CIFAR-100 or a folder of small images from scratch: cifar10.py's network with small-data methods.

    python -m vit_jax.main --config=configs/small_data.py:data=folder:PATH --workdir=DIR
    python -m vit_jax.main --config=configs/small_data.py:data=tfds:cifar100,aug=strong --workdir=DIR --config.steps=40000

`data` is folder:PATH, with train and test folders, or tfds:NAME. `aug` is "light", label smoothing and a running
average of the weights, for few epochs; or "strong", with RandAugment (arXiv:1909.13719), mixup or cutmix, random
erasing and stochastic depth in addition, as in DeiT (arXiv:2012.12877, section 6), for many. There is no published
number for this setting.
"""

import ml_collections

from configs import arguments, cifar10


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=DATA[,aug=light|strong]"."""
    given = arguments.parse(arg, data="tfds:cifar10", aug=("light", "strong"))
    config = cifar10.get_config(given["data"])
    config.task.label_smoothing = 0.1
    config.ema_decay = 0.99
    if given["aug"] == "strong":
        config.data.preprocess = "pad_crop(32, 4)|flip|rand_augment(9)|random_erasing(0.25)"
        config.data.threads = 2
        config.task.mix = {"type": "MixupOrCutMix", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "cutmix_prob": 0.5}
        config.model.drop_path = 0.1
    return config
