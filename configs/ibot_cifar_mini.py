"""Pretrain iBOT on CIFAR-10, on views and masked patches, in about 20 minutes on two cores (arXiv:2111.07832).

    python -m vit_jax.main --config=configs/ibot_cifar_mini.py:data=folder:PATH --workdir=DIR     # {train,test}/<class>/*.jpg

Like configs/dino_cifar_mini.py, with half of the views masked in blocks of 10 to 50 % of their patches, and one head
for views and patches. There is no published number for this setting; the number of steps is an estimate, and the
schedule ends with it.
"""

import ml_collections

from configs import cifar_mini, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=folder:PATH" or "data=tfds:NAME"."""
    task = {"type": "ibot.Ibot", "warmup": 0.3, "freeze_last": 0.02, "smallest_block": 4} | cifar_mini.HEADS
    view = f"random_resized_crop(32, 0.4)|{stages.COLOURS}"
    crop = f"random_resized_crop(16, 0.2, 0.5)|{stages.COLOURS}"
    spec = f"views(2, 2, view={view!r}, crop={crop!r})"
    return cifar_mini.get_config(arg, task, spec, steps=1600, batch_size=64, lr=5e-4, mask_token=True)
