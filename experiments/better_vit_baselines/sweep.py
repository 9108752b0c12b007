"""ViT-S/16 on ImageNet-1k for 90, 150 and 300 epochs."""

from vit_jax.runs.sweeps.space import Sweep, product


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is source and evals of configs/imagenet.py, as in source=folder:PATH,evals=all."""
    more = f",{arg}" if arg else ""
    configs = [f"configs/vit_s16_i1k.py:epochs={epochs}{more}" for epochs in (90, 150, 300)]
    return Sweep(config=configs[0], runs=product({"config": configs}), metric="val/accuracy")
