"""Pretrain by masked autoencoding on CIFAR-10 in about 20 minutes on two cores (MAE, arXiv:2111.06377).

    python -m vit_jax.main --config=configs/mae_cifar_mini.py:data=folder:PATH --workdir=DIR      # {train,test}/<class>/*.jpg

Three quarters of 8 x 8 patches are masked, and a decoder of one layer of width 64 reconstructs their normalised pixels.
There is no published number for this setting, which follows configs/mae.py; the number of steps is an estimate, and the
schedule ends with it.
"""

import ml_collections

from configs import cifar_mini


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=folder:PATH" or "data=tfds:NAME"."""
    task = {"type": "mae.Mae", "mask_ratio": 0.75, "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
    crop = "random_resized_crop(32, 0.2)|flip"
    return cifar_mini.get_config(arg, task, crop, steps=8000, batch_size=128, lr=1e-3, pool="gap")
