"""Pretrain by self-distillation on CIFAR-10 in about 20 minutes on two cores (DINO, arXiv:2104.14294).

    python -m vit_jax.main --config=configs/dino_cifar_mini.py:data=folder:PATH --workdir=DIR     # {train,test}/<class>/*.jpg
    python -m vit_jax.main --config=configs/dino_cifar_mini.py:data=folder:PATH --workdir=DIR --config.data.resident=True

Two views of 32 px and two crops of 16 px, with the area fractions of configs/dino_cifar.py. There is no published
number for this setting; the number of steps is an estimate, and the schedule ends with it. With data.resident the views
are made on the device.
"""

import ml_collections

from configs import cifar_mini, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=folder:PATH" or "data=tfds:NAME"."""
    task = {"type": "dino.Dino", "warmup": 0.3, "freeze_last": 0.02} | cifar_mini.HEADS
    view = f"random_resized_crop(32, 0.4)|{stages.COLOURS}"
    crop = f"random_resized_crop(16, 0.2, 0.5)|{stages.COLOURS}"
    spec = f"views(2, 2, view={view!r}, crop={crop!r})"
    return cifar_mini.get_config(arg, task, spec, steps=2000, batch_size=64, lr=5e-4)
