"""Pretrain LeJEPA on CIFAR-10 in about 20 minutes on two cores (arXiv:2511.08544).

    python -m vit_jax.main --config=configs/lejepa_cifar_mini.py:data=folder:PATH --workdir=DIR   # {train,test}/<class>/*.jpg

Each image gives two views of 32 px and two crops of 16 px, without a teacher; colour changes are as in
configs/dino_cifar_mini.py. Batches have 128 images because the statistic compares the examples of a batch. There is no
published number for this setting; the number of steps is an estimate, and the schedule ends with it.
"""

import ml_collections

from configs import cifar_mini, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=folder:PATH" or "data=tfds:NAME"."""
    task = {"type": "lejepa.Lejepa", "weight": 0.02, "hidden": 512, "outputs": 64}
    view = f"random_resized_crop(32, 0.3)|{stages.COLOURS}"
    crop = f"random_resized_crop(16, 0.1, 0.3)|{stages.COLOURS}"
    spec = f"views(2, 2, view={view!r}, crop={crop!r})"
    return cifar_mini.get_config(arg, task, spec, steps=1600, batch_size=128, lr=1e-3)
